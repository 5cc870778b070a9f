"""FLOPs of one plain pass, told apart by what a plan repeats: blocks, what lies between them, and all else.

One pass is counted, and the price of any plan is arithmetic from there on (`dtme.plan.cost`). What is made of the tokens that
enter a block is done to every stream. In a block, a product of tokens and weights grows as the sequence does, and one of tokens
and tokens as its square; an update of rank r costs `r (in + out) / (in out)` of what its layer does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme._tracing import of_this_thread
from dtme._wrappers import modules_by_any_name, modules_by_name, named_modules
from dtme.attach.apply import is_applied
from dtme.attach.block_trial import find_late_part, try_insert
from dtme.measure.batches import Reading
from dtme.measure.products import TOKENS, Origin, Products, Tally, Trail, address_of
from dtme.plan.cost import BlockFlops, ModelFlops
from dtme.trunk.blocks import find_blocks, holders_of, runs_last
from dtme.trunk.call import BlockCall


def count_flops(model: nn.Module, run: Callable[[], Any], blocks: Sequence[str]) -> ModelFlops:
    """Count one pass of a plain model in evaluation.

    Args:
        model: A multi-task model without inserts.
        run: Runs it; of what else it does, losses say, nothing is counted.
        blocks: Blocks that may get inserts, or parts of some; those that `find_blocks` finds are counted as well.

    Raises:
        ValueError: The model has inserts, or no block ran.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> flops = count_flops(trunk, lambda: trunk(torch.ones(3, 5, 8)), ["layers.0"])
        >>> flops.blocks["layers.0"].stream == 2 * 3 * 5 * (4 * 8 * 8 + 2 * 8 * 16 + 2 * 5 * 8)
        True
    """
    if is_applied(model):
        raise ValueError("the model has inserts: FLOPs are those of a plain model.")
    count = _PassCount(model, blocks)
    devices = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)):
        with torch.no_grad(), count.watch():
            run()
        return count.tell()


def count_first_batch(reading: Reading, trunk: nn.Module, blocks: Sequence[str]) -> ModelFlops | str:
    """Count one more pass over the first batch that a process has read, or say why that cannot be done.

    Whatever happens in it, an analysis goes on: there are kernels that no counter may look at.
    """

    def count() -> tuple[ModelFlops | str, None]:
        if reading.sharded:
            return "the model is sharded: analyse it before, in one process.", None
        if not reading.first:
            return "no batch was read in this process.", None
        try:
            return count_flops(trunk, lambda: reading.task_losses(reading.model, reading.first[0]), blocks), None
        except Exception as why:
            return f"the FLOPs of the model cannot be counted: {why}", None

    told = reading.processes.exchange(count)[0]
    return next((flops for flops in told if isinstance(flops, ModelFlops)), told[0])


class _PassCount:
    """Counts one pass of a model while it runs, see `count_flops`."""

    def __init__(self, model: nn.Module, blocks: Sequence[str]) -> None:
        try:
            trunk = find_blocks(model)
        except ValueError:
            trunk = {}
        self.model, self.named = model, tuple(blocks)
        self.modules = modules_by_any_name(model)
        self.blocks = {name: m for name, m in modules_by_name(model).items() if name in trunk or name in self.named}
        self.branches = _dictionary_members(model, self.blocks)
        self.holders = holders_of(model)
        self.parts = {name: self._parts_of(name, block) for name, block in self.blocks.items()}
        self.tallies: dict[str, Tally] = {}
        self.calls: dict[Hashable, BlockCall] = {}  # of one block of each kind
        self.tried: dict[Hashable, str | None] = {}
        self.once = 0
        self.running = 0  # modules of the model: losses are no part of the pass
        self.block = self.last = ""  # the outermost that runs, and the last that ran
        self.branch: nn.Module | None = None
        self.within: dict[str, bool] = {}  # parts of the block that have begun, and whether they run
        self.inside, self.outside = Trail(), Trail()

    def _parts_of(self, name: str, block: nn.Module) -> dict[str, Tally]:
        """Parts of a block to be counted: those that were named, or that in which streams may part last."""
        named = [part for part in self.named if part.startswith(f"{name}.")]
        late = None if named else find_late_part(block)
        inner = {part for part in named if any(part.startswith(f"{other}.") for other in named)}
        names = [part for part in named if part not in inner] if late is None else [f"{name}.{late}"]
        parts = {part: self.modules[part] for part in names}
        return {part: Tally(module) for part, module in parts.items() if self.holders[module] == 1}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Follow the pass that runs in this context."""
        handles, own = [], of_this_thread
        for module in self.model.modules():
            handles.append(module.register_forward_pre_hook(own(partial(self._step, 1))))
            handles.append(module.register_forward_hook(own(partial(self._step, -1))))
        for name, block in self.blocks.items():
            handles.append(block.register_forward_pre_hook(own(partial(self._enter_block, name)), with_kwargs=True))
            handles.append(block.register_forward_hook(own(partial(self._leave_block, name))))
            for part, tally in self.parts[name].items():
                handles.append(tally.module.register_forward_pre_hook(own(partial(self._enter_part, name, part))))
                handles.append(tally.module.register_forward_hook(own(partial(self._leave_part, part))))
        for branch in self.branches:
            handles.append(branch.register_forward_pre_hook(own(self._enter_branch)))
            handles.append(branch.register_forward_hook(own(self._leave_branch)))
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one kernel for a whole layer, which no formula is known of
        try:
            with Products(self._add):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for handle in handles:
                handle.remove()

    def _step(self, by: int, *_: Any) -> None:
        self.running += by

    def _enter_block(self, name: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.block or self.branch is not None:
            return
        self.block, self.within, self.inside = name, {}, Trail()
        call = BlockCall.read(block, args, kwargs)
        self.calls.setdefault(_kind_of(block), call)
        tokens = call.tokens
        tally = self.tallies.setdefault(name, Tally(block))
        tally.begin(call.length or tokens.numel() // (call.rows * tokens.shape[call.layout.channel]))
        for weight in tally.weights:
            self.inside.mark(weight, address_of(weight))
        self.inside.mark(tokens, TOKENS)

        def mark(rows: Tensor, dim: int) -> Tensor:
            self.inside.mark(rows, TOKENS)
            return rows

        call.change_rows(mark, call.rows)

    def _leave_block(self, name: str, block: nn.Module, args: Any, output: Any) -> None:
        if self.block == name:
            self.block, self.last = "", name
            self.outside.mark(output, TOKENS)

    def _enter_part(self, name: str, part: str, module: nn.Module, args: Any) -> None:
        if self.block == name:
            self.within[part] = True
            self.parts[name][part].begin(self.tallies[name].length)

    def _leave_part(self, part: str, module: nn.Module, args: Any, output: Any) -> None:
        self.within[part] = False

    def _enter_branch(self, branch: nn.Module, args: Any) -> None:
        if not self.block and self.branch is None:
            self.branch = branch

    def _leave_branch(self, branch: nn.Module, args: Any, output: Any) -> None:
        if self.branch is branch:
            self.branch = None

    def _add(self, flops: int, factors: tuple[Any, ...], inputs: Any, output: Any) -> None:
        """An operation that ran. Outside of blocks and branches, what is made of their tokens is done to every stream."""
        if not self.running:  # a loss
            return
        if self.block:
            self.inside.follow(inputs, output)
            if flops:
                self._add_to_block(flops, [self.inside.origin(factor) for factor in factors])
        elif self.branch is None and self.outside.follow(inputs, output):
            self.tallies[self.last].behind += flops
        else:
            self.once += flops

    def _add_to_block(self, flops: int, factors: list[Origin]) -> None:
        self.tallies[self.block].add(flops, factors)
        for part, runs in self.within.items():
            own = self.parts[self.block][part]
            if runs:
                own.add(flops, factors)
            elif any(TOKENS in factor for factor in factors):
                own.behind += flops

    def tell(self) -> ModelFlops:
        """What was counted.

        Raises:
            ValueError: No block ran.
        """
        if not self.tallies:
            raise ValueError(f"none of the blocks {', '.join(self.blocks)} ran, so there is nothing to count.")
        if not self.branches:
            self.once += self.tallies[self.last].behind
            self.tallies[self.last].behind = 0
        return ModelFlops(
            self.once,
            {
                name: tally.tell(self._try(name, "expand", "adapt"), self._tell_parts(name, tally))
                for name, tally in self.tallies.items()
            },
        )

    def _tell_parts(self, name: str, tally: Tally) -> dict[str, BlockFlops]:
        """Parts that ran once, which have one price; one that nobody has named only if streams may part in it."""
        told = {}
        for part, own in self.parts[name].items():
            inner = part.removeprefix(f"{name}.")
            if own.runs != 1 or tally.runs != 1:
                continue
            if part in self.named:
                refusals = self._try(name, "expand", "adapt", part=inner)
                told[part] = own.tell(refusals, {}, last=runs_last(inner, tally.module))
            elif not own.behind:
                refusals = self._try(name, "adapt", part=inner)
                if not refusals or not self._try(name, "modulate", part=inner):
                    told[part] = own.tell(refusals, {}, last=True)
        return told

    def _try(self, name: str, *kinds: str, part: str = "") -> dict[str, str]:
        """Why a block, or a part of it, takes no inserts of some kinds: one block of each kind is tried."""
        block, refusals = self.blocks[name], {}
        for kind in kinds:
            key = (_kind_of(block), kind, part)
            if key not in self.tried:
                self.tried[key] = try_insert(block, self.calls[_kind_of(block)], kind, part)
            why = self.tried[key]
            if why is not None:
                refusals[kind] = why.replace("'block", f"'{name}")
        return refusals


def _kind_of(block: nn.Module) -> Hashable:
    """The same for blocks of one class and size."""
    return type(block), tuple(parameter.shape for parameter in block.parameters())


def _dictionary_members(model: nn.Module, blocks: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The members of every dictionary of modules that neither holds a block nor lies in one: as a rule, heads by task."""
    found = []
    for name, module in named_modules(model):
        inside = any(f"{name}.".startswith(f"{block}.") or block.startswith(f"{name}.") for block in blocks)
        if isinstance(module, nn.ModuleDict) and name and not inside:
            found += module.values()
    return found
