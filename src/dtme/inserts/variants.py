"""Blocks of which some lanes run apart from others: through a copy of their own, or with task tokens that others do not have.

The forward of the block, and of that object alone, is exchanged: it leads each lane through its variant of the block, and puts
together what these give. The block's class, parameters and hooks stay, and so the tokens that it is called with have been
folded and modulated.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme._tracing import runs_as_written
from dtme.inserts.block_copies import make_weights
from dtme.inserts.call_state import Calls, CallState
from dtme.inserts.host import Host
from dtme.inserts.insert import values_of
from dtme.inserts.task_tokens import append_task_tokens, drop_task_tokens, tokens_of_lanes
from dtme.streams.joining import join_outputs
from dtme.streams.lanes import Lanes, Places, at, choose_lanes
from dtme.trunk.call import BlockCall
from dtme.trunk.output import tokens_of


@dataclass(frozen=True)
class Variant:
    """Some lanes of a call, and what they run through.

    Attributes:
        lanes: Which ones.
        copy: The place of their copy, -1 for the block itself.
        expanded: Whether they get task tokens.
    """

    lanes: Lanes
    copy: int
    expanded: bool


class VariantForward:
    """What stands for the forward of a block.

    Attributes:
        block: The block.
        before: The forward that the object had, if not that of its class.
        host: Facts about the block.
        calls: Of the block.
        copied: Tasks that have a copy.
        expanded: Tasks that have task tokens which others lack.
        runs_variants: Tells it from other forwards.
    """

    runs_variants = True

    def __init__(
        self, block: nn.Module, host: Host, calls: Calls, copied: tuple[str, ...], expanded: tuple[str, ...]
    ) -> None:
        self.block = block
        self.before: Any = vars(block).get("forward")
        self.host = host
        self.calls = calls
        self.copied = copied
        self.expanded = expanded

    @property
    def __signature__(self) -> inspect.Signature:
        """What the forward that this one stands for takes, for whoever asks by name."""
        return inspect.signature(self.before or partial(type(self.block).forward, self.block))

    @runs_as_written
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output, of every lane by its variant."""
        state = self.calls.state_inside
        if state is None or "dtme" not in self.block._modules:  # removed, while someone else's forward calls this one
            return self._run(-1, args, kwargs)
        variants = list(self._variants(state))
        if not variants:
            return self._run(-1, args, kwargs)
        call, adapting = state.call.given(args, kwargs), state.adapting
        self._check(call, variants)
        outputs: list[Any] = []
        tokens: list[Tensor] = []
        state.ran_apart = False
        for variant in variants:
            state.adapting = adapting if len(variants) == 1 or not len(adapting) else at(adapting, variant.lanes)
            own = call if len(variants) == 1 else _of_lanes(state, call, variant.lanes)
            outputs.append(self._run_variant(variant, own, state))
            tokens.append(
                outputs[-1] if isinstance(outputs[-1], Tensor) else tokens_of(outputs[-1], own.tokens, self.host.name)
            )
        state.adapting = adapting
        state.ran_apart = len(variants) > 1
        if len(variants) == 1:
            return outputs[0]
        order = _order([variant.lanes for variant in variants])
        strict = len({variant.copy for variant in variants}) > 1
        return join_outputs(self.host.name, outputs, tokens, order, state.batch, strict=strict)

    def _run_variant(self, variant: Variant, call: BlockCall, state: CallState) -> Any:
        if not variant.expanded:
            return self._run(variant.copy, call.args, call.kwargs)
        insert: Any = self.block._modules["dtme"]
        stacked: Tensor = values_of(insert)["tokens"]
        places = at(state.places(self.expanded), variant.lanes)
        extra = tokens_of_lanes(stacked, places, call.rows, len(places))
        longer = append_task_tokens(self.host, self.block, call, extra)
        output = self._run(variant.copy, longer.args, longer.kwargs)
        return drop_task_tokens(self.host, self.block, longer, output, extra.shape[1])

    def _run(self, place: int, args: Any, kwargs: Any) -> Any:
        """The forward of the block or of a copy past its hooks, which have been called around this one."""
        block: Any = self.block
        if place >= 0:
            own_copies: Any = self.block._modules["dtme"]
            block = own_copies.copies[place]
        if block is not self.block:
            make_weights(block, args)
            if hasattr(block, "unshard"):  # sharded by itself: its hooks gather its weights
                return block(*args, **kwargs)
        own = self.before if block is self.block else vars(block).get("forward")
        return type(block).forward(block, *args, **kwargs) if own is None else own(*args, **kwargs)

    def _variants(self, state: CallState) -> Iterator[Variant]:
        """The variants that a call needs, and which lanes go through each."""
        copies, tokens = state.places(self.copied), state.places(self.expanded)
        for place in range(-1, len(self.copied)):
            for expanded in (True, False) if self.expanded else (False,):
                chosen = _choose(copies, tokens, place, expanded=expanded)
                if len(chosen):
                    yield Variant(chosen, place, expanded)

    def _check(self, call: BlockCall, variants: list[Variant]) -> None:
        for name, value in call.named().items() if len(variants) > 1 else ():
            if hasattr(value, "get_seq_length"):
                raise ValueError(
                    f"copies: block {self.host.name!r} keeps keys and values in {name}, where those of its copies would be taken "
                    "for more positions of its own: call the model with use_cache=False, or set model.config.use_cache = False."
                )


@dataclass
class Exchanged:
    """A block whose forward has been exchanged."""

    block: nn.Module

    def remove(self) -> None:
        """Give it back the forward that it had; one that was put around ours since goes on, and finds no variants."""
        ours: Any = vars(self.block).get("forward")
        if not getattr(ours, "runs_variants", False):
            return
        del self.block.forward
        if ours.before is not None:
            self.block.forward = ours.before


def run_variants(
    block: nn.Module, host: Host, calls: Calls, copied: tuple[str, ...], expanded: tuple[str, ...]
) -> Exchanged:
    """Let a block lead each lane through its variant; arguments as of `VariantForward`."""
    block.forward = VariantForward(block, host, calls, copied, expanded)
    return Exchanged(block)


def _of_lanes(state: CallState, call: BlockCall, chosen: Lanes) -> BlockCall:
    """The call for some of its lanes."""

    def choose(argument: Tensor, dim: int) -> Tensor:
        return choose_lanes(argument, state.lanes, chosen, dim)

    others = call.change_rows(choose, call.rows, seen=state.seen)
    return others.with_tokens(choose(call.tokens, state.batch))


def _choose(copies: Places, tokens: Places, copy: int, *, expanded: bool) -> Lanes:
    if isinstance(copies, list) and isinstance(tokens, list):
        return [
            lane
            for lane, (own, row) in enumerate(zip(copies, tokens, strict=True))
            if own == copy and (row >= 0) == expanded
        ]
    assert isinstance(copies, Tensor)
    assert isinstance(tokens, Tensor)
    return ((copies == copy) & ((tokens >= 0) == expanded)).nonzero().flatten()


def _order(chosen: list[Lanes]) -> Lanes:
    """Which lane of all variants, one after the other, stands at each place of the batch."""
    if isinstance(chosen[0], list):
        mixed = [lane for lanes in chosen for lane in lanes]
        return [mixed.index(lane) for lane in range(len(mixed))]
    return torch.cat([torch.as_tensor(lanes) for lanes in chosen]).argsort()
