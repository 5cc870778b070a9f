"""Attention that adds biases from a table of relative positions of its own, over the whole sequence, as BEiT's does.

Such a table has a row for each pair of positions, the class token's included, and none for task tokens. Here one attention
module, and that object alone, is let to answer for longer sequences: a task token is at no distance, so its bias is 0.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dtme._shapes import Float

OF_POSITIONS = re.compile(r"cpb|rel_pos|meta_mlp|(^|[._])pos(ition)?s?[._]", re.IGNORECASE)
"""Layers that turn relative coordinates into biases: they take a table that all samples share, and no tokens."""


def spanning_tables(block: nn.Module) -> dict[str, Any]:
    """The attention modules of a block whose table of biases is over the whole sequence, by name.

    A table with a place for the class token spans the sequence; those of windows have none.
    """
    return {name: inner for name, inner in block.named_modules() if _spans(inner)}


def _spans(module: Any) -> bool:
    index, area = getattr(module, "relative_position_index", None), getattr(module, "window_size", None)
    if not (isinstance(index, Tensor) and isinstance(area, tuple) and hasattr(module, "_get_rel_pos_bias")):
        return False
    return index.ndim == 2 and len(index) == math.prod(area) + 1


@dataclass
class Widened:
    """An attention module whose biases are as wide as the sequence that enters it."""

    attention: Any
    handle: RemovableHandle

    def remove(self) -> None:
        """Give it back the method of its class."""
        self.handle.remove()
        del self.attention._get_rel_pos_bias


def widen(attention: Any) -> Widened:
    """Let an attention module take sequences that end in task tokens."""
    entering = Entering()
    attention._get_rel_pos_bias = partial(widened_biases, attention, entering)
    return Widened(attention, attention.register_forward_pre_hook(entering))


class Entering:
    """How long the sequence is that is in an attention module just now; a forward pre-hook of it."""

    length = 0

    def __call__(self, attention: nn.Module, args: tuple[Any, ...]) -> None:
        """Take note of the length of `(B, N, C)`."""
        self.length = args[0].shape[1]


def widened_biases(attention: Any, entering: Entering) -> Float[Tensor, "1 heads n n"]:
    """The biases of the module's table, and 0 for every pair with a position behind its last."""
    known = type(attention)._get_rel_pos_bias(attention)
    more = entering.length - known.shape[-1]
    return F.pad(known, (0, more, 0, more))
