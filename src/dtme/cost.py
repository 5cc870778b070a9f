"""What a plan costs at inference: the FLOPs of a pass that computes all tasks, and how many streams each block carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dtme.apply import is_applied
from dtme.block_flops import BlockFlops
from dtme.blocks import packing_modules
from dtme.branches import leaving_modules
from dtme.flops import FlopCount, ModelFlops
from dtme.plan import Plan
from dtme.products import plain_products
from dtme.streams import Groups, refine


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


def measure(plan: Plan, model: nn.Module, sample: Any, branches: Mapping[str, nn.Module | str] | None = None) -> Cost:
    """The cost of a plan on a model, see `Plan.cost`."""
    if is_applied(model):
        raise ValueError(
            "cost: this model has inserts already, and a plan's cost is told against the plain model. Ask before apply, or of "
            "plan.cost(dtme.remove(copy.deepcopy(model)), sample)."
        )
    modules = dict(model.named_modules())
    missing = [name for name in plan.blocks if name not in modules]
    if missing:
        raise ValueError(f"plan: this model has no block {missing[0]!r}.")
    leaving = [module for _, module in leaving_modules(model, plan.tasks, branches)]
    count = FlopCount(model, plan.blocks, leaving, plan.adapt_layers)
    with _evaluating(model), torch.no_grad(), plain_products(), count.first_pass():
        if isinstance(sample, Mapping):
            model(**sample)
        elif isinstance(sample, tuple | list):
            model(*sample)
        else:
            model(sample)
    return price(plan, count.flops())


def price(plan: Plan, flops: ModelFlops) -> Cost:
    """The cost of a plan by arithmetic, from the FLOPs of the plain model.

    Every block runs once per stream, and so does what lies between blocks; task tokens lengthen the sequence of the streams
    that have some, and those that have none run apart from them; low-rank updates are made in all streams that run
    together as soon as one of them has one. A copy of a block runs in the block's place, on the stream of its task. Where no
    stream has parted before and the last part of a block alone has inserts, streams part there.

    Raises:
        ValueError: A block did not run on its own in the pass that was counted, or cannot take what the plan inserts.

    Example:
        >>> from dtme.block_flops import BlockFlops
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
            f"{', '.join(flops.blocks)}."
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


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and padded tokens while the context lasts; random numbers drawn in it leave no trace."""
    modes = [(module, module.training) for module in model.modules()]
    packing = packing_modules(model).values()
    devices = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        model.eval()
        for module in packing:
            module.use_nested_tensor = False
        with torch.random.fork_rng(sorted(devices)):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module in packing:
            module.use_nested_tensor = True
