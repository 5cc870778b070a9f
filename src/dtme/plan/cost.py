"""What a plan costs at inference, by arithmetic: the FLOPs of a pass that computes all tasks, and the streams of each block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dtme.plan.plan import Plan
from dtme.streams.groups import Groups, refine


@dataclass(frozen=True)
class Cost:
    """The price of a plan: one pass in evaluation that computes all tasks.

    Attributes:
        flops: Of the pass with the plan applied, over the whole sample.
        plain_flops: Of the same pass without inserts.
        streams: Per block, in the order in which they run, how many streams of tokens it carries.
    """

    flops: int
    plain_flops: int
    streams: dict[str, int]

    @property
    def ratio(self) -> float:
        """The pass as a multiple of the plain one.

        Example:
            >>> Cost(150, 100, {"x.0": 2}).ratio
            1.5
        """
        return self.flops / self.plain_flops


@dataclass(frozen=True)
class BlockFlops:
    """FLOPs that one block, and what follows it up to the next one, add to a pass over a batch.

    Attributes:
        stream: Of one stream through the block.
        shared: Of what the block computes once, however many streams there are (a table of positions).
        behind: Of one stream between this block and the next, or the branches.
        task_tokens: `(a, b)`: n task tokens add `a n + b n^2` to a stream. `None` where the block takes none.
        updates: `(a, b)`: low-rank updates of rank r add `r (a + b n)` to a stream. `None` where none can be made.
        refusals: Why it is `None`, by the field of the plan that asks for it, `"expand"` or `"adapt"`.
        parts: Of parts of the block, by name; what is `behind` a part is what the block makes of its output.
        last: Of a part, whether it runs last in the block, so that streams may part in it.
    """

    stream: int
    shared: int = 0
    behind: int = 0
    task_tokens: tuple[int, int] | None = None
    updates: tuple[int, int] | None = None
    refusals: dict[str, str] = field(default_factory=dict)
    parts: dict[str, BlockFlops] = field(default_factory=dict)
    last: bool = False

    @property
    def late(self) -> str | None:
        """The part in which streams may part last, if one has been counted."""
        return next((name for name, part in self.parts.items() if part.last), None)

    def run(self, streams: int, tokens: int = 0, rank: int = 0) -> int:
        """FLOPs of one run of the block on so many streams with so many task tokens each.

        Raises:
            ValueError: Task tokens or updates are asked for, and the block takes none.

        Example:
            >>> BlockFlops(100, 7, task_tokens=(10, 1), updates=(4, 0)).run(streams=3, tokens=2, rank=5)
            439
        """
        one = self.stream
        if tokens:
            linear, quadratic = self._known("expand", self.task_tokens)
            one += linear * tokens + quadratic * tokens**2
        if rank:
            alone, per_token = self._known("adapt", self.updates)
            one += rank * (alone + per_token * tokens)
        return self.shared + streams * one

    def _known(self, name: str, found: tuple[int, int] | None) -> tuple[int, int]:
        if found is None:
            raise ValueError(self.refusals.get(name, f"{name}: this block takes none."))
        return found


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of a plain multi-task pass over one batch.

    Attributes:
        once: Of what runs once under any plan: what comes before the first block, and every task's branch.
        blocks: Block by block, in the order in which they run.
    """

    once: int
    blocks: dict[str, BlockFlops]

    @property
    def plain(self) -> int:
        """All of them.

        Example:
            >>> ModelFlops(5, {"x.0": BlockFlops(100, shared=7, behind=1)}).plain
            113
        """
        return self.once + sum(block.run(1) + block.behind for block in self.blocks.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelFlops:
        """What `to_dict` gave, also after a visit to JSON, which knows no tuples.

        Example:
            >>> flops = ModelFlops(5, {"x.0": BlockFlops(100, task_tokens=(3, 1), refusals={"adapt": "no layers."})})
            >>> ModelFlops.from_dict(flops.to_dict()) == flops
            True
        """
        return cls(data["once"], {name: _block_of(found) for name, found in data["blocks"].items()})


def price(plan: Plan, flops: ModelFlops) -> Cost:
    """The cost of a plan by arithmetic, from the FLOPs of the plain model: an estimate of `dtme.cost`.

    Every block runs once per stream, and so does what lies between blocks; task tokens lengthen the sequence of the streams
    that have some, and those that have none run apart from them; low-rank updates are made in all streams that run
    together as soon as one of them has one. A copy of a block runs in the block's place, on the stream of its task. Where no
    stream has parted before and the last part of a block alone has inserts, streams part there.

    Raises:
        ValueError: A block did not run on its own in the pass that was counted, or cannot take what the plan inserts, or the
            plan adapts some layers alone.

    Example:
        >>> flops = ModelFlops(10, {"x.0": BlockFlops(100), "x.1": BlockFlops(100, behind=5)})
        >>> cost = price(Plan(("depth", "semseg"), {"x.1": ("depth", "semseg")}), flops)
        >>> cost.flops, cost.plain_flops, cost.streams
        (320, 215, {'x.0': 1, 'x.1': 2})
    """
    known = {*flops.blocks, *(part for block in flops.blocks.values() for part in block.parts)}
    idle = [name for name in plan.blocks if name not in known]
    if idle:
        raise ValueError(
            f"plan: block {idle[0]!r} did not run by itself in the pass that was counted. Those that did: "
            f"{', '.join(flops.blocks)}. dtme.cost(model, plan, batch) counts any plan."
        )
    if plan.adapt and plan.adapt_layers is not None:
        raise ValueError(
            f"adapt_layers={plan.adapt_layers!r}: what is known is the price of updates of all linear layers. "
            "dtme.cost(model, plan, batch) counts any plan."
        )
    groups: Groups = (plan.tasks,)
    total, streams = flops.once, {}
    for name, block in flops.blocks.items():
        parts = {part: found for part, found in block.parts.items() if part in plan.blocks}
        bare = not plan.parting(name) and name not in plan.expand
        late = bare and len(groups) == 1 and [found.last for found in parts.values()] == [True]
        if late:  # what runs before the part runs once
            total += block.run(1)
        else:
            groups = refine(groups, [*plan.parting(name), *(task for part in parts for task in plan.parting(part))])
            total += _runs(plan, name, block, groups)
        expanded = len(plan.expand.get(name, ()))
        tokens = plan.tokens_per_task * (expanded if plan.joint_tokens else min(expanded, 1))
        for part, found in parts.items():
            once = 1 if late else len(groups)
            groups = refine(groups, plan.parting(part))
            total += _runs(plan, part, found, groups, tokens) - found.run(once, tokens)
            total += (len(groups) - once) * found.behind
        total += len(groups) * block.behind
        streams[name] = len(groups)
    return Cost(total, flops.plain, streams)


def _runs(plan: Plan, name: str, block: BlockFlops, groups: Groups, around: int = 0) -> int:
    """FLOPs of a block, or a part of one, on all streams; task tokens of the block around a part are there `around` it."""
    expanded, adapted = plan.expand.get(name, ()), plan.adapt.get(name, ())
    own = [(group,) for group in groups if group[0] in plan.copies.get(name, ())]
    if own:
        passes = [*((group, 0) for group in own), (tuple(group for group in groups if (group,) not in own), 0)]
    elif plan.joint_tokens or not expanded:
        passes = [(groups, plan.tokens_per_task * len(expanded))]
    else:
        having = tuple(group for group in groups if group[0] in expanded)
        lacking = tuple(group for group in groups if group[0] not in expanded)
        passes = [(having, plan.tokens_per_task), (lacking, 0)]
    total = 0
    for members, tokens in passes:
        if not members:
            continue
        rank = plan.rank if any(group[0] in adapted for group in members) else 0
        try:
            total += block.run(len(members), around + tokens, rank)
        except ValueError as why:
            raise ValueError(f"plan: block {name!r} cannot take what is planned there. {why}") from None
    return total


def _block_of(found: Mapping[str, Any]) -> BlockFlops:
    pairs = {key: None if found[key] is None else tuple(found[key]) for key in ("task_tokens", "updates")}
    parts = {name: _block_of(part) for name, part in found.get("parts", {}).items()}
    return BlockFlops(**{**found, **pairs, "parts": parts})
