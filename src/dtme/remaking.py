"""Modulated tokens are made again on the way back, so that streams keep no more than their number of activations.

For the gradient of its scale a modulator keeps the tokens that it is given. What follows in the block, a norm mostly, keeps
those that the modulator hands on: the same ones, scaled and shifted. So while the block runs, what is to be kept of them is
how they are made, and the very same operation makes them again when a gradient needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dtme.eager import is_transformed
from dtme.insert import Insert, Recipe

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
    """How tokens are made, and which view of them is kept.

    Attributes:
        make: Makes them.
        sources: Out of these.
        view: Sizes, strides and offset.
    """

    make: Callable[..., Tensor]
    sources: tuple[Kept, ...]
    view: tuple[tuple[int, ...], tuple[int, ...], int]

    def again(self) -> Tensor:
        """The tokens, to the bit.

        Raises:
            RuntimeError: The model has written to what they are made of.
        """
        with torch.no_grad():
            return self.make(*(source.again() for source in self.sources)).as_strided(*self.view)


_WRITTEN = (
    "{} was modified by an inplace operation before the backward pass that needs it. Write x = x + y instead of x += y in the "
    "model; step the optimiser after the backward pass."
)


def remaking(recipe: Recipe) -> saved_tensors_hooks:
    """A context in which no operation keeps some tokens, or views of them, for its backward pass.

    The caller holds the recipe meanwhile, so that no other tensor comes to lie in the place of what it made.

    Example:
        >>> tokens, scale = torch.randn(2, 3), torch.ones(3, requires_grad=True)
        >>> recipe = Recipe(tokens * scale, torch.mul, (tokens, scale))
        >>> with remaking(recipe):
        ...     cubes = recipe.made**3  # needs what was made on the way back
        >>> cubes.sum().backward()
        >>> torch.testing.assert_close(scale.grad, (3 * tokens**3).sum(0))
    """
    made, sources = recipe.made, tuple(_kept(source) for source in recipe.sources)
    # What is kept holds on to its hooks: through them it must not keep the tokens either.
    return saved_tensors_hooks(partial(_pack, ref(made), made._version, partial(Made, recipe.make, sources)), _unpack)


def _pack(tokens: ReferenceType[Tensor], version: int, remade: Callable[..., Made], saved: Tensor) -> Kept | Made:
    made = tokens()
    is_of_made = (
        made is not None
        and type(saved) is Tensor
        and saved.layout == torch.strided
        and saved.dtype == made.dtype
        and saved.untyped_storage().data_ptr() == made.untyped_storage().data_ptr()
        and saved._version == version  # the block has not written to them
    )
    view = (tuple(saved.shape), saved.stride(), int(saved.storage_offset())) if is_of_made else None
    return _kept(saved) if view is None else remade(view)


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
    if passage.recipe is None:
        return
    if is_transformed() or not passage.recipe.made.requires_grad or not _needs_its_tokens(insert):
        passage.recipe = None
    elif _autograd._saved_tensors_hooks_is_enabled() and _active() is None:
        passage.remaking = remaking(passage.recipe)
        passage.remaking.__enter__()


def _needs_its_tokens(insert: Insert) -> bool:
    """Whether a modulator is trained, so that what tokens are made of is kept in any case."""
    return insert.scale is not None and insert.scale.requires_grad


def stop_remaking(insert: Insert) -> None:
    """Let operations keep what they need again, once the block has run or failed."""
    hooks = insert.passage.remaking
    insert.passage.recipe = insert.passage.remaking = None
    active = None if hooks is None else _active()
    if hooks is not None and active is not None and active[0] is hooks.pack_hook:
        hooks.__exit__()


def _active() -> Any:
    return _autograd._top_saved_tensors_default_hooks(False)
