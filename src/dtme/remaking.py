"""Modulated tokens are made again on the way back, so that streams keep no more than their number of activations.

For the gradient of its scale a modulator keeps the tokens that it is given. The norm that a block begins with keeps those that
the modulator hands on: the same ones, scaled and shifted. So that norm keeps how they are made in their place, and the very
same operation makes them again when its gradient needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dtme.eager import is_transformed
from dtme.insert import Insert, Recipe


def watch_norms(block: nn.Module, insert: Insert) -> Iterator[RemovableHandle]:
    """Let the norms of a block with modulators keep how modulated tokens are made, where they are given these."""
    for norm in block.modules():
        if isinstance(norm, nn.LayerNorm):
            yield norm.register_forward_hook(partial(_after_norm, insert))


def _after_norm(insert: Insert, norm: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    recipe = insert.passage.recipe
    if recipe is None or not args or args[0] is not recipe.made or is_transformed():
        return
    saved = getattr(getattr(output, "grad_fn", None), "_raw_saved_input", None)
    if saved is None or insert.scale is None or not insert.scale.requires_grad or not _is_as_made(insert, recipe):
        return
    try:
        saved.register_hooks(partial(_pack, recipe.made.data_ptr(), _remade(recipe)), _unpack)
    except RuntimeError:  # someone else decides what is kept, as activation checkpointing does
        return


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


def _pack(place: int, remade: Remade, saved: Tensor) -> Remade | Tensor:
    return remade if saved.data_ptr() == place else saved.detach()  # a copy of the norm's own, as autocast makes one


def _unpack(kept: Remade | Tensor) -> Tensor:
    return kept.again() if isinstance(kept, Remade) else kept
