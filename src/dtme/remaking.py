"""Modulated tokens are made again on the way back, so that streams keep no more than their number of activations.

For the gradient of its scale a modulator keeps the tokens that it is given. What reads them first in a block, a norm or the maps
to queries, keys and values, keeps those that the modulator hands on: the same ones, scaled and shifted. So that reader keeps how
they are made in their place, and the very same operation makes them again when its gradient needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from dtme.eager import is_transformed
from dtme.insert import Insert, Recipe

_FARTHEST = 32
"""Operations between what a module gives and what it was given that are looked at, at most."""


def watch_readers(block: nn.Module, insert: Insert) -> Iterator[RemovableHandle]:
    """Let what reads modulated tokens in a block keep how they are made, where it is given these."""
    for module in block.modules():
        if isinstance(module, nn.MultiheadAttention) or not list(module.children()):
            yield module.register_forward_hook(partial(_after_reading, insert))


def _after_reading(insert: Insert, reader: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    recipe = insert.passage.recipe
    if recipe is None or not args or args[0] is not recipe.made or is_transformed():
        return
    if insert.scale is None or not insert.scale.requires_grad or not _is_as_made(insert, recipe):
        return
    first = output[0] if isinstance(output, tuple) else output
    remade: Remade | None = None
    for saved in _saved_between(getattr(first, "grad_fn", None), recipe.made.grad_fn):
        known = getattr(saved, "data", None)
        if not _are_these(known, recipe.made):
            continue
        remade = remade or _remade(recipe)
        try:
            saved.register_hooks(partial(_pack, remade), partial(_unpack, known.shape))
        except RuntimeError:  # someone else decides what is kept, as activation checkpointing does
            return


def _saved_between(last: Node | None, first: Node | None) -> Iterator[Any]:
    """What the operations keep that lead from a tensor to another that was made of it."""
    waiting, seen = [last], {first, None}
    while waiting and len(seen) < _FARTHEST:
        node = waiting.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in _kept_by(type(node)):
            saved = getattr(node, name)
            yield from saved if isinstance(saved, tuple) else (saved,)
        waiting += [before for before, _ in node.next_functions]


@cache
def _kept_by(operation: type[Node]) -> tuple[str, ...]:
    """Under which names an operation has what it keeps."""
    return tuple(name for name in dir(operation) if name.startswith("_raw_saved_"))


def _are_these(known: object, made: Tensor) -> TypeGuard[Tensor]:
    """Whether a tensor that is kept is the modulated tokens, perhaps in another shape."""
    if not isinstance(known, Tensor) or known.dtype != made.dtype or known.numel() != made.numel():
        return False
    return known.data_ptr() == made.data_ptr() and known.is_contiguous()


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


def _pack(remade: Remade, saved: Tensor) -> Remade:
    return remade


def _unpack(shape: torch.Size, kept: Remade) -> Tensor:
    return kept.again().view(shape)
