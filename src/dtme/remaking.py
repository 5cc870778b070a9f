"""Modulated tokens are made again on the way back, so that streams keep no more than their number of activations.

For the gradient of its scale a modulator keeps the tokens that it is given. What reads tokens first in the block, a norm or the
maps to queries, keys and values, keeps those that the modulator hands on: the same ones, scaled and shifted. So when a block
has run, whatever has kept these is given how they are made in their place, and the very same operation makes them again when a
gradient needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import Node

from dtme.arguments import Call
from dtme.eager import is_replayed, is_transformed
from dtme.insert import Insert, Recipe
from dtme.outputs import tensors_of

_MOST = 1000
"""Operations of a block that are looked at, at most."""
_KEPT: WeakKeyDictionary[type[Node], tuple[str, ...]] = WeakKeyDictionary()
"""Under which names operations of a kind have what they keep."""


def remake(insert: Insert, recipe: Recipe, call: Call, output: Any) -> None:
    """Let what a block has kept of its modulated tokens be made again when it is needed.

    Args:
        insert: Of the block.
        recipe: Of the tokens that it ran on.
        call: That it ran with.
        output: What it gave.
    """
    if insert.scale is None or not insert.scale.requires_grad or is_transformed() or is_replayed():
        return
    ends = {recipe.made.grad_fn, *_makers_of(call)}
    kept = [
        own for own in _kept_between(_makers_of(output), ends) if _are_these(getattr(own, "data", None), recipe.made)
    ]
    if not kept or not _is_as_made(insert, recipe):
        return
    remade = _remade(recipe)
    with suppress(RuntimeError):  # someone else decides what is kept, as activation checkpointing does
        for own in kept:
            own.register_hooks(partial(_pack, remade), _unpack)


def _makers_of(tensors: Any) -> set[Node]:
    """The operations that have made tensors, wherever these are held."""
    return {tensor.grad_fn for tensor in tensors_of(tensors) if tensor.grad_fn is not None}


def _kept_between(lasts: Iterable[Node | None], firsts: Iterable[Node | None]) -> Iterator[Any]:
    """What the operations have kept that lead to the last ones from the first ones, which are left out."""
    waiting, seen = list(lasts), set(firsts)
    while waiting and len(seen) < _MOST:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in _names_of_kept(type(node)):
            try:
                kept = getattr(node, name)
            except RuntimeError:  # it has been freed
                continue
            yield from kept if isinstance(kept, tuple) else (kept,)
        waiting += [before for before, _ in node.next_functions]


def _names_of_kept(kind: type[Node]) -> tuple[str, ...]:
    if kind not in _KEPT:
        _KEPT[kind] = tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))
    return _KEPT[kind]


def _are_these(kept: object, made: Tensor) -> TypeGuard[Tensor]:
    """Whether what is kept is the modulated tokens, perhaps in another shape."""
    if type(kept) is not Tensor or kept.layout != torch.strided or kept.dtype != made.dtype:
        return False
    return kept.numel() == made.numel() and kept.is_contiguous() and kept.data_ptr() == made.data_ptr()


def _is_as_made(insert: Insert, recipe: Recipe) -> bool:
    """Whether nobody has written to the tokens since they were made; past the version counter, too, when first asked."""
    made = recipe.made
    if type(made) is not Tensor or made.is_meta or not made.is_contiguous() or made._version != recipe.version:
        return False
    if "remaking" not in insert.tried:
        with torch.no_grad():
            if not torch.equal(recipe.make(*recipe.sources), made):
                return False
        insert.tried.add("remaking")
    return True


@dataclass(frozen=True)
class Remade:
    """Tokens that are made again when they are needed.

    Attributes:
        make: Makes them.
        sources: Out of these.
        versions: Of these.
    """

    make: Callable[..., Tensor]
    sources: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def again(self) -> Tensor:
        """The tokens, to the bit.

        Raises:
            RuntimeError: The model has written to what they are made of.
        """
        if not torch.compiler.is_compiling() and tuple(source._version for source in self.sources) != self.versions:
            raise RuntimeError(
                f"tokens of shape {tuple(self.sources[-1].shape)} that a modulator was given were modified by an inplace "
                "operation before the backward pass that needs them. Write x = x + y instead of x += y in the model."
            )
        with torch.no_grad():
            return self.make(*self.sources)


def _remade(recipe: Recipe) -> Remade:
    """A recipe that keeps tokens as they are, and of what is small and may be stepped or freed meanwhile a copy."""
    *small, tokens = recipe.sources
    sources = (*(source.detach().clone() for source in small), tokens.detach())
    return Remade(recipe.make, sources, tuple(source._version for source in sources))


def _pack(remade: Remade, kept: Tensor) -> tuple[Remade, torch.Size]:
    return remade, kept.shape


def _unpack(packed: tuple[Remade, torch.Size]) -> Tensor:
    remade, shape = packed
    return remade.again().view(shape)
