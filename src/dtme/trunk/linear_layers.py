"""The linear layers of a block that take its tokens, and so can have low-rank updates.

The projections of an `nn.MultiheadAttention` are linear layers too, though it calls none: `in_proj` (queries, keys and values
in one, or `q_proj`, `k_proj`, `v_proj` where they differ in size) and `out_proj`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from dtme._patterns import compiled
from dtme._shapes import Float
from dtme._wrappers import named_modules
from dtme.trunk.attention import is_open_to
from dtme.trunk.relative_bias import OF_POSITIONS


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block, whatever keeps its weight.

    Attributes:
        module: What runs it: itself, or the attention whose projection it is.
        weight: Its weight, a view of the parameter.
    """

    module: nn.Module
    weight: Float[Tensor, "outputs inputs"]

    @property
    def in_features(self) -> int:
        """Channels it takes."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Channels it gives."""
        return self.weight.shape[0]


def linear_layers(block: nn.Module, pattern: str | None = None) -> dict[str, Linear]:
    """The linear layers of a block that take its tokens, by their name in it.

    They are found by type: `nn.Linear`, the transposed one of GPT-2, and the projections of `nn.MultiheadAttention`. A layer
    that computes position biases has no row per sample and is left out, and so is a block that is one layer itself. One that
    peft has put adapters on keeps its name.

    Args:
        block: A block, without insert or with one.
        pattern: A regular expression that matches the whole name, as `dtme._patterns` has them; `None` takes all.

    Raises:
        ValueError: An attention among them has a forward of its own, which cannot be told how it uses its projections.

    Example:
        >>> list(linear_layers(nn.TransformerEncoderLayer(8, 2)))
        ['self_attn.in_proj', 'self_attn.out_proj', 'linear1', 'linear2']
    """
    wanted = None if pattern is None else compiled(pattern)
    found = {
        name: linear
        for name, linear in ((name.replace(".base_layer", ""), linear) for name, linear in _linear_layers(block))
        if name and not OF_POSITIONS.search(name) and (wanted is None or wanted.matches(name))
    }
    for name, linear in found.items():
        if isinstance(linear.module, nn.MultiheadAttention) and not is_open_to(linear.module):
            raise ValueError(
                f"{name!r} belongs to a {type(linear.module).__name__} with a forward of its own, where no update can be added. "
                f"Choose others by adapt_layers, a regular expression over their names: {list(found)}."
            )
    return found


def _linear_layers(block: nn.Module) -> Iterator[tuple[str, Linear]]:
    within: tuple[str, ...] = ()
    for name, module in named_modules(block):
        if name.startswith(within):
            continue
        if getattr(module, "is_inserted", False):
            within = (*within, f"{name}.")
            continue
        if isinstance(
            getattr(module, "base_layer", None), nn.Module
        ):  # peft's: the layer as it was, and adapters beside it
            within = (*within, *(f"{name}.{own}." for own, _ in module.named_children() if own != "base_layer"))
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.MultiheadAttention):
            prefix = f"{name}." if name else ""
            within = (*within, prefix) if prefix else within
            yield from ((prefix + own, Linear(module, weight)) for own, weight in _projections(module))
        elif isinstance(module, nn.Linear):
            yield name, Linear(module, module.weight)
        elif isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == getattr(module, "nf", None):
            yield name, Linear(module, weight.mT)  # GPT-2 calls it a convolution


def _projections(attention: nn.MultiheadAttention) -> Iterator[tuple[str, Tensor]]:
    together = attention.in_proj_weight
    if together is not None:
        yield "in_proj", together
    else:
        yield from ((name, getattr(attention, f"{name}_weight")) for name in ("q_proj", "k_proj", "v_proj"))
    yield "out_proj", attention.out_proj.weight
