"""Catch the tokens that enter the blocks during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Bool, Float
from dtme._tracing import of_this_thread
from dtme.streams.routing import leading_shape
from dtme.streams.tensor import Streams, gather, stream_of
from dtme.trunk.batch_dim import check_samples, check_square
from dtme.trunk.call import BlockCall
from dtme.trunk.layout import Layout
from dtme.trunk.padding import checked_mask, fitting, valid_tokens

TokenMask = Callable[[Any], Tensor]
"""Yours: `token_mask(batch)` is True, or 1, where a token is real: a row per sample, a column per token of the blocks."""


@dataclass
class Run:
    """The tokens that entered a block in one of its runs.

    Attributes:
        tokens: As the block consumes them; streams where they have parted.
        layout: Their layout.
        valid: False at padding, where any is known of.
    """

    tokens: Tensor
    layout: Layout
    valid: Bool[Tensor, "samples tokens"] | None

    def valid_samples(self, tokens: Tensor) -> Float[Tensor, "samples tokens p"]:
        """These tokens, or gradients by them, samples first and zero at padding."""
        samples = self.layout.samples_first(tokens)
        return samples if self.valid is None else samples.masked_fill(~self.valid.unsqueeze(-1), 0.0)

    def samples(self) -> int:
        """How many samples there are."""
        return self.tokens.shape[self.layout.batch]


@dataclass
class Entry:
    """What entered one block in a pass.

    A block that runs several times (a recurrent block, a trunk called on both of two sentences) has one set of inserts
    for all its runs, and so is one place: the tokens of a sample are those of all runs, one after another.
    """

    runs: list[Run]

    @property
    def tokens(self) -> Tensor:
        """What entered in the first run."""
        return self.runs[0].tokens

    @property
    def layout(self) -> Layout:
        """The layout of the first run."""
        return self.runs[0].layout

    @property
    def valid(self) -> Bool[Tensor, "samples tokens"] | None:
        """False at padding, over all runs; `None` where no padding is known of."""
        if all(run.valid is None for run in self.runs):
            return None
        sizes = [run.layout.samples_first(run.tokens).shape[:2] for run in self.runs]
        every = [
            torch.ones(size, dtype=torch.bool, device=run.tokens.device) if run.valid is None else run.valid
            for run, size in zip(self.runs, sizes, strict=True)
        ]
        return torch.cat(every, 1)

    def parted(self) -> bool:
        """Whether the tokens of some run have parted into streams."""
        return any(isinstance(run.tokens, Streams) for run in self.runs)

    def finite(self) -> bool:
        """Whether all tokens are."""
        tensors = [run.tokens._streams if isinstance(run.tokens, Streams) else (run.tokens,) for run in self.runs]
        return all(bool(tensor.isfinite().all()) for streams in tensors for tensor in streams)

    def of_task(self, task: str) -> list[Tensor]:
        """The tokens of each run that a task's stream brings there."""
        return [stream_of(run.tokens, task) for run in self.runs]

    def valid_samples(self, tokens: Sequence[Tensor]) -> Float[Tensor, "samples tokens p"]:
        """Tokens of each run, or gradients by them, as one sequence: samples first and zero at padding."""
        parts = [run.valid_samples(own) for run, own in zip(self.runs, tokens, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@dataclass
class Capture:
    """What entered the blocks in the last forward pass, in the order in which they first ran.

    Attributes:
        token_mask: Tells which tokens of a batch are real.
        entries: By block, what entered it.
        half: Whether tokens of the pass were float16 or, under autocast, what is made of them is: small gradients are zero there.
    """

    token_mask: TokenMask | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    half: bool = False
    _mask: Tensor | None = None
    _given: tuple[int, ...] | None = None
    _open: bool = True
    _tried: set[str] = field(default_factory=set)

    def clear(self) -> None:
        """Forget the last pass."""
        self.entries.clear()
        self.half = False

    @contextmanager
    def reading(self, batch: Any) -> Iterator[None]:
        """The pass over a batch: runs in it count, and those that checkpointing repeats behind it do not."""
        self.clear()
        self._given = leading_shape(batch)
        self._mask = None if self.token_mask is None else checked_mask(self.token_mask(batch))
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def samples(self) -> int:
        """How many samples it held."""
        return next(iter(self.entries.values())).runs[0].samples()

    def add(self, name: str, block: nn.Module, call: BlockCall) -> None:
        """Note a run of a block."""
        if not self._open:
            return
        tokens, layout = call.tokens, call.layout
        self.half |= torch.float16 in (tokens.dtype, _autocast_dtype(tokens.device.type))
        check_samples(name, block, tokens, layout, self._given)
        if name not in self._tried and check_square(name, block, call):
            self._tried.add(name)
        if self._mask is None:
            valid = valid_tokens(name, block, call.named(), tokens, layout)
        else:
            valid = fitting(self._mask, name, tokens, layout)
        run = Run(tokens, layout, valid)
        entry = self.entries.setdefault(name, Entry([]))
        if entry.runs and entry.runs[0].samples() != run.samples():
            raise ValueError(
                f"block {name!r} runs on {entry.runs[0].samples()} samples and again on {run.samples()} in one pass, and so "
                "which tokens belong to one sample cannot be told. Let each run see all samples of the batch."
            )
        entry.runs.append(run)


@contextmanager
def capture(
    blocks: Mapping[str, nn.Module],
    *,
    differentiable: bool,
    token_mask: TokenMask | None = None,
) -> Iterator[Capture]:
    """Catch the tokens entering `blocks` in this thread while the context lasts.

    Args:
        blocks: Modules by name.
        differentiable: Tokens that do not depend on anything that needs a gradient become leaves that do, so that a loss
            can be differentiated by them.
        token_mask: Which tokens of a batch are real; by default what the blocks are told of padding says so.

    Example:
        >>> block = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> with capture({"block": block}, differentiable=False) as caught:
        ...     _ = block(torch.zeros(1, 3, 8))
        >>> caught.entries["block"].tokens.shape
        torch.Size([1, 3, 8])
    """
    caught = Capture(token_mask)
    hook = partial(_catch, caught, differentiable)
    # Prepended: the tokens are wanted as they come, before any insert of a plan already applied.
    handles = [
        block.register_forward_pre_hook(of_this_thread(partial(hook, name)), with_kwargs=True, prepend=True)
        for name, block in blocks.items()
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _catch(
    caught: Capture, differentiable: bool, name: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        call = BlockCall.read(block, args, kwargs)
    except ValueError as why:
        raise ValueError(
            f"block {name!r}: {why} A decoder's, not the trunk's, or no block at all? Name those of the trunk: "
            "blocks='regular expression'."
        ) from None
    if differentiable:
        call = call.with_tokens(_differentiable(call.tokens))
    caught.add(name, block, call)
    return call.arguments


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _differentiable(tokens: Tensor) -> Tensor:
    if isinstance(tokens, Streams):  # without the folded copy: what is differentiated must be what is consumed
        return gather([_differentiable(stream) for stream in tokens._streams], tokens._groups)
    if tokens.is_inference():  # kept by the model, say, from a pass under inference_mode
        tokens = tokens.clone()
    return tokens if tokens.requires_grad else tokens.detach().requires_grad_()
