"""Catch the tokens that enter the blocks during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Bool, Float, Shaped
from dtme.arguments import argument_names
from dtme.blocks import Layout, layout_of, put, take, tokens_key
from dtme.streams import Streams, gather


@dataclass
class Entry:
    """The tokens that entered one block.

    Attributes:
        tokens: As the block consumes them; streams where they have parted.
        layout: Their layout.
        valid: False at padding, where the block was told of any.
    """

    tokens: Tensor
    layout: Layout
    valid: Bool[Tensor, "samples tokens"] | None

    def finite(self) -> bool:
        """Whether all tokens are."""
        streams = self.tokens._streams if isinstance(self.tokens, Streams) else (self.tokens,)
        return all(bool(stream.isfinite().all()) for stream in streams)

    def valid_samples(self, tokens: Tensor) -> Float[Tensor, "samples tokens p"]:
        """Tokens of this block, or gradients by them, samples first and zero at padding."""
        samples = self.layout.samples_first(tokens)
        return samples if self.valid is None else samples * self.valid.unsqueeze(-1).to(samples.dtype)


@dataclass
class Capture:
    """What entered the blocks in the last forward pass, in the order in which they ran."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget the last pass."""
        self.entries.clear()

    def samples(self) -> int:
        """How many samples it held."""
        entry = next(iter(self.entries.values()))
        return entry.tokens.shape[entry.layout.batch]


@contextmanager
def capture(blocks: Mapping[str, nn.Module], *, differentiable: bool) -> Iterator[Capture]:
    """Catch the tokens entering `blocks` while the context lasts.

    Args:
        blocks: Modules by name.
        differentiable: Tokens that do not depend on anything that needs a gradient become leaves that do, so that a loss
            can be differentiated by them.

    Example:
        >>> block = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> with capture({"block": block}, differentiable=False) as caught:
        ...     _ = block(torch.zeros(1, 3, 8))
        >>> caught.entries["block"].tokens.shape
        torch.Size([1, 3, 8])
    """
    caught = Capture()
    hook = partial(_catch, caught, differentiable)
    # Prepended: the tokens are wanted as they come, before any insert of a plan already applied.
    handles = [
        block.register_forward_pre_hook(partial(hook, name), with_kwargs=True, prepend=True)
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
    key = tokens_key(args, kwargs, argument_names(block))
    tokens: Tensor = take(args, kwargs, key)
    if differentiable:
        tokens = _differentiable(tokens)
        args, kwargs = put(args, kwargs, key, tokens)
    if name not in caught.entries:  # checkpointing runs a block twice; the first run is the one in the graph
        layout = layout_of(block, tokens)
        caught.entries[name] = Entry(tokens, layout, _valid_tokens(block, args, kwargs, tokens, layout))
    return args, kwargs


def _differentiable(tokens: Tensor) -> Tensor:
    if isinstance(tokens, Streams):  # without the folded copy: what is differentiated must be what is consumed
        return gather([_differentiable(stream) for stream in tokens._streams], tokens._groups)
    return tokens if tokens.requires_grad else tokens.detach().requires_grad_()


def _valid_tokens(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: Tensor, layout: Layout
) -> Tensor | None:
    """Which tokens are no padding, from the padding mask a block is given."""
    if layout.token is None:
        return None
    shape = (tokens.shape[layout.batch], tokens.shape[layout.token])
    named = {**dict(zip(argument_names(block), args, strict=False)), **kwargs}
    for name, mask in named.items():
        if not isinstance(mask, Tensor) or isinstance(mask, Streams):
            continue
        if "mask" in name and mask.ndim == 4 and (mask.shape[0], mask.shape[-1]) == shape:
            return _seen(mask)
        if tuple(mask.shape) != shape:
            continue
        if "padding" in name:
            return ~mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        if name == "attention_mask":
            return mask if mask.dtype == torch.bool else mask > 0.5
    return None


def _seen(mask: Shaped[Tensor, "samples heads queries tokens"]) -> Bool[Tensor, "samples tokens"]:
    """Which tokens some position attends to: padding is what none does. True and 1 keep; other values are added to scores."""
    if mask.dtype == torch.bool:
        kept = mask
    else:
        kept = mask > torch.finfo(mask.dtype).min / 2 if torch.is_floating_point(mask) else mask > 0
    return kept.flatten(1, 2).any(1)
