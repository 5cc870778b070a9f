"""Modulated tokens are made again on the way back, so that streams keep no more than their number of activations.

For the gradient of its scale a modulator keeps the tokens that it is given. What follows in the block, a norm mostly, keeps
those that the modulator hands on: the same ones, scaled and shifted. So while the block runs, what is to be kept of them is
how they are made, and the very same operation makes them again when a gradient needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dtme.eager import is_transformed
from dtme.insert import Insert
from dtme.modulation import modulate

_autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Kept:
    """A tensor that an operation keeps for its backward pass.

    Attributes:
        tensor: Its values, apart from the graph, of which they would make a ring.
        version: When it was kept.
    """

    tensor: Tensor
    version: int

    def again(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: The model has written to it since, which would make gradients wrong.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(_WRITTEN.format(f"a tensor of shape {tuple(self.tensor.shape)}"))
        return self.tensor


@dataclass(frozen=True)
class Made:
    """How modulated tokens are made, and which view of them is kept.

    Attributes:
        sources: Tokens, scale and shift.
        view: Sizes, strides and offset.
    """

    sources: tuple[Kept, Kept, Kept]
    view: tuple[tuple[int, ...], tuple[int, ...], int]

    def again(self) -> Tensor:
        """The tokens, to the bit.

        Raises:
            RuntimeError: The model has written to what they are made of.
        """
        tokens, scale, shift = (source.again() for source in self.sources)
        with torch.no_grad():
            return modulate(tokens, scale, shift).as_strided(*self.view)


_WRITTEN = (
    "{} was modified by an inplace operation before the backward pass that needs it. Write x = x + y instead of x += y in the "
    "model; step the optimiser after the backward pass."
)


def remaking(made: Tensor, sources: tuple[Tensor, Tensor, Tensor]) -> saved_tensors_hooks:
    """A context in which no operation keeps some modulated tokens, or views of them, for its backward pass.

    Args:
        made: The modulated tokens, to be held by the caller meanwhile, so that no other tensor comes to lie in their place.
        sources: Tokens, scale and shift, as given to `modulate`.

    Example:
        >>> tokens, scale, shift = torch.randn(2, 3), torch.ones(3, requires_grad=True), torch.zeros(3)
        >>> made = modulate(tokens, scale, shift)
        >>> with remaking(made, (tokens, scale, shift)):
        ...     cubes = made**3  # needs `made` on the way back
        >>> cubes.sum().backward()
        >>> torch.testing.assert_close(scale.grad, (3 * tokens**3).sum(0))
    """
    tokens, scale, shift = (_kept(source) for source in sources)
    # What is kept holds on to its hooks: through them it must not keep the tokens either.
    return saved_tensors_hooks(partial(_pack, ref(made), made._version, (tokens, scale, shift)), _unpack)


def _pack(
    made_ref: ReferenceType[Tensor], version: int, sources: tuple[Kept, Kept, Kept], saved: Tensor
) -> Kept | Made:
    made = made_ref()
    is_of_made = (
        made is not None
        and type(saved) is Tensor
        and saved.layout == torch.strided
        and saved.dtype == made.dtype
        and saved.untyped_storage().data_ptr() == made.untyped_storage().data_ptr()
        and saved._version == version  # the block has not written to them
    )
    view = (tuple(saved.shape), saved.stride(), int(saved.storage_offset())) if is_of_made else None
    return _kept(saved) if view is None else Made(sources, view)


def _kept(tensor: Tensor) -> Kept:
    return Kept(tensor.detach(), tensor._version)


def _unpack(kept: Kept | Made) -> Tensor:
    return kept.again()


def remake_while_running(insert: Insert) -> None:
    """Let a block that is about to run on modulated tokens keep none of them.

    Not where someone else decides what is kept, as activation checkpointing does, nor where a pass is compiled or
    transformed: compilers find it out by themselves.
    """
    passage = insert.passage
    if passage.modulation is None:
        return
    made, sources = passage.modulation
    if is_transformed() or not made.requires_grad or not sources[1].requires_grad:
        passage.modulation = None
    elif _autograd._saved_tensors_hooks_is_enabled() and _active() is None:
        passage.remaking = remaking(made, sources)
        passage.remaking.__enter__()


def stop_remaking(insert: Insert) -> None:
    """Let operations keep what they need again, once the block has run or failed."""
    hooks = insert.passage.remaking
    insert.passage.modulation = insert.passage.remaking = None
    active = None if hooks is None else _active()
    if hooks is not None and active is not None and active[0] is hooks.pack_hook:
        hooks.__exit__()


def _active() -> Any:
    return _autograd._top_saved_tensors_default_hooks(False)
