"""FLOPs of one block under any plan, from a few runs of it beside the pass.

A block does the same to every stream, and compares a token with each other token at most. So its FLOPs are linear in the
streams and in the rank of low-rank updates, and quadratic in the task tokens; as many runs as such a polynomial has
coefficients give it exactly: the block as it is, with two streams, and with task tokens and updates put in as `apply` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme.apply import open_layers
from dtme.arguments import Call, argument_names, change_rows, exchange, take, tokens_key, with_own_caches
from dtme.blocks import fused_projections
from dtme.crossing import entered
from dtme.insert import Insert
from dtme.layout import layout_of, width_of
from dtme.plan import Plan
from dtme.position_tables import spanning_tables, widen
from dtme.routing import Routing
from dtme.streams import fold

_SAMPLES = 2
"""Samples a block is run on: with one, what is made once for all samples could be taken for that sample's own."""
_TASK = ("task",)
_TWO = (("first",), ("second",))

Counted = Callable[[Callable[[], Any]], int]
"""Runs something and tells its FLOPs."""


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

    def times(self, many: int, few: int) -> BlockFlops:
        """What was counted on a few samples, of many; what is shared does not depend on them.

        Example:
            >>> BlockFlops(100, 7, updates=(4, 1)).times(6, 2)
            BlockFlops(stream=300, shared=7, behind=0, task_tokens=None, updates=(12, 3), refusals={}, parts={}, last=False)
        """

        def all_of(pair: tuple[int, int] | None) -> tuple[int, int] | None:
            return None if pair is None else (pair[0] * many // few, pair[1] * many // few)

        return replace(
            self,
            stream=self.stream * many // few,
            behind=self.behind * many // few,
            task_tokens=all_of(self.task_tokens),
            updates=all_of(self.updates),
        )

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


def first_samples(block: nn.Module, call: Call) -> tuple[Call, int, int]:
    """A call of a block on its first samples, how many these are, and how many the call has.

    Args:
        block: Without insert.
        call: The arguments it is called with.
    """
    tokens: Tensor = take(*call, tokens_key(*call, argument_names(block)))
    rows = tokens.shape[layout_of(block, tokens).batch]
    few = min(rows, _SAMPLES)

    def first(held: Tensor, dim: int) -> Tensor:
        return held.narrow(dim, 0, held.shape[dim] // rows * few)

    return _changed(block, call, first), few, rows


def _changed(block: nn.Module, call: Call, change: Callable[..., Tensor]) -> Call:
    """A call with its tokens, and what else it holds per sample, changed along the samples."""
    names = argument_names(block)
    key = tokens_key(*call, names)
    tokens: Tensor = take(*call, key)
    layout = layout_of(block, tokens)
    length = None if layout.token is None else tokens.shape[layout.token]
    own = change(tokens, dim=layout.batch)
    samples = tokens.shape[layout.batch]
    return change_rows(exchange(call, tokens, own), names, samples, length, change, own, layout.batch)


def count_block(name: str, block: nn.Module, call: Call, flops: Counted, adapt_layers: str | None) -> BlockFlops:
    """Count a block that is about to run, by runs of its own on the first samples of its call.

    Args:
        name: Of the block.
        block: Without insert.
        call: The arguments it is called with.
        flops: Counts a run.
        adapt_layers: Which linear layers get low-rank updates, as in `Plan`.
    """

    def counted(call: Call) -> int:
        args, kwargs = with_own_caches(call)
        return flops(lambda: block.forward(*args, **kwargs))

    def with_insert(**placed: Any) -> int:
        plan = Plan(_TASK, rank=1, adapt_layers=adapt_layers, **placed)
        with _inserted(name, block, plan) as insert:
            return counted(entered(insert, block, *call)) - alone

    call, few, rows = first_samples(block, call)
    alone = counted(call)
    both = counted(_changed(block, call, partial(fold, groups=_TWO)))
    refusals: dict[str, str] = {}
    here = {name: _TASK}
    task_tokens = updates = None
    one = update = 0
    try:
        one, two = with_insert(expand=here), with_insert(expand=here, tokens_per_task=2)
        task_tokens = (2 * one - two // 2, two // 2 - one)
    except (ValueError, RuntimeError) as why:  # a part of a block may add tokens to others, which are as many as ever
        refusals["expand"] = str(why)
    try:
        update = with_insert(adapt=here)
        beside = with_insert(adapt=here, expand=here) - one - update if task_tokens else 0
        updates = (update, beside)
    except ValueError as why:
        refusals["adapt"] = str(why)

    return BlockFlops(both - alone, 2 * alone - both, 0, task_tokens, updates, refusals).times(rows, few)


@contextmanager
def _inserted(name: str, block: nn.Module, plan: Plan) -> Iterator[Insert]:
    """An insert whose updates the block's layers ask for; its random values leave the generators where they were."""
    routing = Routing(model=block, tasks=_TASK, active=_TASK)
    devices = {parameter.device.index for parameter in block.parameters() if parameter.device.type == "cuda"}
    fused = fused_projections(block).values() if plan.adapt else ()
    with torch.random.fork_rng(sorted(devices)), ExitStack() as opened:
        insert = Insert(name, block, plan, routing, width_of(block)).eval()
        for handle in open_layers(block, insert, plan) if plan.adapt else ():
            opened.callback(handle.remove)
        for attention in spanning_tables(block).values() if plan.expand else ():
            opened.callback(widen(attention).remove)
        for attention in fused:
            attention.qkv_bias_separate = True
            opened.callback(setattr, attention, "qkv_bias_separate", False)
        yield insert
