"""How a block's tokens lie: their width, and which dimension holds samples, positions and channels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from dtme.trunk.relative_bias import OF_POSITIONS

_HEAD_NORM = re.compile(r"(^|[._])(q|k|query|key)_?(layer)?_?norm$", re.IGNORECASE)
_CHANNELS_FIRST = re.compile(r"2d|GroupNorm")


@dataclass(frozen=True)
class Layout:
    """Where a block's tokens keep their samples and their positions.

    Attributes:
        batch: The dimension of the samples.
        token: The dimension of the positions, `None` where positions form a grid.
        channel: The dimension of the channels.
    """

    batch: int
    token: int | None
    channel: int = -1

    def samples_first(self, tokens: Tensor) -> Tensor:
        """Tokens as `(samples, tokens, channels)`, a view where the layout allows one."""
        return tokens.movedim((self.batch, self.channel), (0, -1)).flatten(1, -2)


def layout_of(block: nn.Module, tokens: Tensor) -> Layout:
    """The layout of the tokens a block takes: `(B, N, C)`, `(N, B, C)` where it or its attention says so, or a grid.

    A block that has a `batch_first` is believed, otherwise its `nn.MultiheadAttention` is.

    A grid is `(B, H, W, C)`, or `(B, C, H, W)` where the block's width stands there alone; where it stands in both
    places, its first norm tells (`BatchNorm2d`, `GroupNorm`, a `LayerNorm2d`).

    Raises:
        ValueError: The tokens have neither three nor four dimensions, are no grid of the block's width, or are a sequence
            whose channels come before its positions.
    """
    if tokens.ndim == 4:
        return Layout(batch=0, token=None, channel=1 if _channels_first(block, tokens) else -1)
    if tokens.ndim != 3:
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} enter {type(block).__name__}: expected (samples, tokens, channels), "
            "(tokens, samples, channels) or (samples, height, width, channels). Unbatched input? Add a batch dimension."
        )
    if only_convolves_sequences(block) and tokens.shape[1] == width_of(block):
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} enter {type(block).__name__}, whose layers are convolutions that take "
            "(samples, channels, tokens), and (samples, tokens, channels) is wanted."
        )
    first = getattr(block, "batch_first", None)
    if first is None:
        first = all(inner.batch_first for inner in block.modules() if isinstance(inner, nn.MultiheadAttention))
    return Layout(batch=0, token=1) if first else Layout(batch=1, token=0)


def only_convolves_sequences(block: nn.Module) -> bool:
    """Whether a block's layers are convolutions over sequences, and none is linear: channels come before positions then."""
    kinds = [nn.Linear if isinstance(inner, nn.Linear) else type(inner) for inner in block.modules()]
    return nn.Linear not in kinds and any(issubclass(kind, nn.Conv1d) for kind in kinds)


def _channels_first(block: nn.Module, tokens: Tensor) -> bool:
    width = width_of(block)
    if width not in (tokens.shape[1], tokens.shape[-1]):
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} enter {type(block).__name__}, whose first layer takes {width} channels; "
            "neither (samples, height, width, channels) nor (samples, channels, height, width) reads so."
        )
    if tokens.shape[1] == tokens.shape[-1]:
        return _CHANNELS_FIRST.search(type(first_norm(block)).__name__) is not None
    return tokens.shape[1] == width


def width_of(block: nn.Module) -> int:
    """Channels p of the tokens that enter a block: what its first layer takes, a norm, a linear layer or a convolution.

    Layers of positions and norms of queries and keys, which take something else, do not count. A convolution of each channel by
    itself takes what is inside a mixer as often as what enters, and is asked last.

    Example:
        >>> width_of(nn.TransformerEncoderLayer(8, 2))
        8
    """
    counting = [m for name, m in block.named_modules() if not (OF_POSITIONS.search(name) or _HEAD_NORM.search(name))]
    for inner in sorted(counting, key=_is_depthwise):
        width = _taken_by(inner)
        if width is not None:
            return width
    raise ValueError(
        f"the width of {type(block).__name__} cannot be read off: it holds neither a norm nor a linear layer nor a convolution."
    )


def _is_depthwise(layer: nn.Module) -> bool:
    return getattr(layer, "groups", 1) == getattr(layer, "in_channels", None) != 1


def _taken_by(layer: nn.Module) -> int | None:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if "Norm" in type(layer).__name__ and weight.ndim == 1:
        return len(weight)
    if weight.ndim == 2 and hasattr(layer, "nf"):
        return len(weight)  # GPT-2's linear layer, which it calls a convolution
    takes = getattr(layer, "in_features", getattr(layer, "in_channels", None))
    return takes if isinstance(takes, int) else None


def first_norm(module: nn.Module) -> nn.Module | None:
    """The first norm over channels inside a module, not counting those of queries and keys."""
    for name, inner in module.named_modules():
        weight = getattr(inner, "weight", None)
        if "Norm" in type(inner).__name__ and isinstance(weight, Tensor) and weight.ndim == 1:
            if _HEAD_NORM.search(name):  # of queries and keys, and as wide as an attention head
                continue
            return inner
    return None
