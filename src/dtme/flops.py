"""FLOPs of a plain multi-task pass, told apart by what a plan repeats: blocks, what lies between them, and all else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from dtme.alike import likeness
from dtme.arguments import Call
from dtme.block_flops import BlockFlops, count_block, first_samples
from dtme.blocks import find_blocks, holders_of
from dtme.insert import Insert
from dtme.part_flops import count_parts, late_part, takes_streams_behind
from dtme.products import Products, plain_products
from dtme.trail import Trail


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


class FlopCount:
    """Counts one pass of a model while it runs; tokens come out of the blocks as they do uncounted.

    Args:
        model: A multi-task model without inserts.
        blocks: Blocks that may get inserts; those that `find_blocks` finds are counted as well.
        branches: The modules where tasks leave the trunk. `None` takes the members of every `ModuleDict` that holds no
            block; where there is none, all that follows the last block counts as the tasks' own.
        adapt_layers: Which linear layers get low-rank updates, as in `Plan`.
        late: Whether the part of each block in which streams may part last is counted as well, where there is one and it can be.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Iterable[str],
        branches: Sequence[nn.Module] | None = None,
        adapt_layers: str | None = None,
        *,
        late: bool = False,
    ) -> None:
        try:
            trunk = find_blocks(model)
        except ValueError:
            trunk = {}
        blocks = tuple(blocks)
        wanted = {*trunk, *blocks}
        self.model = model
        self.blocks = {name: module for name, module in model.named_modules() if name in wanted}
        self.branches = _dictionary_members(model, self.blocks) if branches is None else list(branches)
        self.adapt_layers = adapt_layers
        self._named, self._late = blocks, late
        self._aside: Callable[[], AbstractContextManager[None]] = nullcontext
        self._runs: dict[str, list[BlockFlops]] = {}
        self._alike: dict[Hashable, BlockFlops] = {}
        self._late_parts: dict[Hashable, dict[str, BlockFlops]] = {}
        inserts = any(isinstance(module, Insert) for module in model.modules())
        self._fault = "the model has inserts: FLOPs are those of a plain model." if inserts else None
        self._holders: Mapping[nn.Module, int] = {}
        self._once = 0
        self._behind: Counter[str] = Counter()
        self._products = Products(self._operation)
        self._block: nn.Module | None = None  # the outermost that runs, if one does
        self._branch: nn.Module | None = None
        self._running = 0  # modules of the model: the losses of an analysis are no part of the pass
        self._last = ""
        self._from_trunk = Trail()

    def first_pass(
        self, aside: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> AbstractContextManager[None]:
        """Count the pass that runs in this context, unless one in which a block ran has been counted.

        Args:
            aside: What blocks run in beside the pass, for those who watch the pass as well.
        """
        return nullcontext() if self._runs or self._fault else self._pass(aside)

    def flops(self) -> ModelFlops:
        """What was counted.

        Raises:
            ValueError: No block ran, or one could not be run beside the pass.
        """
        if self._fault is not None:
            raise ValueError(self._fault)
        if not self._runs:
            raise ValueError(f"none of the blocks {', '.join(self.blocks)} ran, so there is nothing to count.")
        for name, runs in self._runs.items():
            if len(runs) > 1 and any(part in self._named for part in runs[0].parts):
                raise ValueError(
                    f"block {name!r} runs {len(runs)} times, where inserts in parts of it have no one price."
                )
        once, behind = self._once, Counter(self._behind)
        if not self.branches:
            once += behind.pop(self._last, 0)
        blocks = {name: replace(_sum(runs), behind=behind[name]) for name, runs in self._runs.items()}
        return ModelFlops(once, blocks)

    def flops_or_why_not(self) -> ModelFlops | str:
        """What was counted, or why nothing was."""
        try:
            return self.flops()
        except ValueError as why:
            return str(why)

    @contextmanager
    def _pass(self, aside: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        self._once, self._behind, self._aside = 0, Counter(), aside
        self._holders = holders_of(self.model)
        handles = []
        for module in self.model.modules():
            handles.append(module.register_forward_pre_hook(self._begin))
            handles.append(module.register_forward_hook(self._end))
        for name, block in self.blocks.items():
            handles.append(block.register_forward_pre_hook(partial(self._enter_block, name), with_kwargs=True))
            handles.append(block.register_forward_hook(partial(self._leave_block, name)))
        for branch in self.branches:
            handles.append(branch.register_forward_pre_hook(self._enter_branch))
            handles.append(branch.register_forward_hook(self._leave_branch))
        try:
            with ExitStack() as self._unfused, ExitStack() as self._counting:
                self._counting.enter_context(self._products)
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._block, self._branch, self._running = None, None, 0
            self._aside = nullcontext  # which holds on to whoever watched the pass
            self._alike.clear()  # which holds on to what the blocks were called with
            self._late_parts.clear()
            self._from_trunk.forget()

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._running += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running -= 1

    def _enter_block(self, name: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._block is not None or self._branch is not None:
            return
        self._block, running = block, self._running
        with self._aside():
            try:
                like = likeness(block, (args, kwargs), self._holders)
                found = self._alike.get(like)
                if found is None:
                    found = count_block(name, block, (args, kwargs), self._flops, self.adapt_layers)
                    if not found.refusals:  # which name the block
                        self._alike[like] = found
                parts = {part: self.blocks[part] for part in self._named if part.startswith(f"{name}.")}
                if parts:
                    found = replace(found, parts=self._parts(name, parts, block, (args, kwargs)))
                self._runs.setdefault(name, []).append(found)
            except Exception as why:  # told by `flops`: the pass itself goes on
                self._fault = f"the FLOPs of block {name!r} cannot be counted: {why}"
            else:
                if self._late and not parts:
                    self._runs[name][-1] = replace(found, parts=self._late_part(like, name, block, (args, kwargs)))
        self._running = running  # modules that raised beside the pass have not told of their end
        self._counting.close()  # kernels that no mode may look at (flex attention) run as ever

    def _parts(self, name: str, parts: Mapping[str, nn.Module], block: nn.Module, call: Call) -> dict[str, BlockFlops]:
        shared = [part for part, module in parts.items() if self._holders[module] > 1]
        if shared:
            raise ValueError(f"{shared[0]!r} is a part of other modules as well")
        return count_parts(name, parts, block, call, self._flops, self.adapt_layers)

    def _late_part(self, like: Hashable, name: str, block: nn.Module, call: Call) -> dict[str, BlockFlops]:
        """The part in which streams may part last; none where it cannot be counted, as nobody has asked for it by name."""
        if like not in self._late_parts:
            self._late_parts[like] = self._counted_late(name, block, call)
        return {f"{name}.{part}": found for part, found in self._late_parts[like].items()}

    def _counted_late(self, name: str, block: nn.Module, call: Call) -> dict[str, BlockFlops]:
        part = late_part(block)
        if part is None:
            return {}
        place, module = f"{name}.{part}", block.get_submodule(part)
        try:
            call, few, samples = first_samples(block, call)
            found = self._parts(name, {place: module}, block, call)[place]
            self._counting.close()  # under whose modes scripted functions are run in another way
            comes_last = found.behind == 0 and takes_streams_behind(module, block, call)
        except Exception:
            return {}
        return {part: found.times(samples, few)} if comes_last else {}

    def _leave_block(self, name: str, block: nn.Module, args: Any, output: Any) -> None:
        if self._block is block:
            self._block, self._last = None, name
            self._counting.enter_context(self._products)
            self._from_trunk.mark(output)

    def _enter_branch(self, branch: nn.Module, args: Any) -> None:
        if self._block is None and self._branch is None:
            self._branch = branch
            self._unfused.enter_context(plain_products())

    def _leave_branch(self, branch: nn.Module, args: Any, output: Any) -> None:
        if self._branch is branch:
            self._branch = None
            self._unfused.close()

    def _operation(self, flops: int, inputs: Any, output: Any) -> None:
        """An operation that ran. Outside of blocks and branches, what is made of their tokens is done to every stream."""
        if self._block is not None or not self._running:  # a run beside the pass, or a loss
            return
        if self._branch is None and self._from_trunk.follow(inputs, output):
            self._behind[self._last] += flops
        else:
            self._once += flops

    def _flops(self, run: Callable[[], Any]) -> int:
        before = self._products.total
        with torch.no_grad(), plain_products():
            run()
        return self._products.total - before


def _block_of(found: Mapping[str, Any]) -> BlockFlops:
    pairs = {key: None if found[key] is None else tuple(found[key]) for key in ("task_tokens", "updates")}
    parts = {name: _block_of(part) for name, part in found.get("parts", {}).items()}
    return BlockFlops(**{**found, **pairs, "parts": parts})


def _dictionary_members(model: nn.Module, blocks: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The members of every dictionary of modules that neither holds a block nor lies in one: as a rule, heads by task."""
    found = []
    for name, module in model.named_modules():
        inside = any(f"{name}.".startswith(f"{block}.") or block.startswith(f"{name}.") for block in blocks)
        if isinstance(module, nn.ModuleDict) and name and not inside:
            found += module.values()
    return found


def _sum(runs: Sequence[BlockFlops]) -> BlockFlops:
    """A block that runs several times in a pass does so on the same streams, with the same inserts."""

    def total(pairs: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
        known = [pair for pair in pairs if pair is not None]
        return (sum(a for a, _ in known), sum(b for _, b in known)) if len(known) == len(pairs) else None

    return BlockFlops(
        stream=sum(run.stream for run in runs),
        shared=sum(run.shared for run in runs),
        task_tokens=total([run.task_tokens for run in runs]),
        updates=total([run.updates for run in runs]),
        refusals={name: why for run in runs for name, why in run.refusals.items()},
        parts=runs[0].parts if len(runs) == 1 else {},
    )
