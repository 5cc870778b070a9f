"""Which dimension of the tokens holds the samples is read off a block; here that is held against what the model was given.

A wrong reading would fold streams into the positions, where they see each other, and no shape would tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dtme.streams.tensor import Streams
from dtme.trunk.call import BlockCall
from dtme.trunk.layout import Layout
from dtme.trunk.probe import seeing


def check_samples(name: str, block: nn.Module, tokens: Tensor, layout: Layout, given: tuple[int, ...] | None) -> None:
    """Refuse tokens whose samples seem to be where their positions were expected.

    As many rows per sample as a model likes (windows, frames) are a multiple of its samples. Of inputs with four dimensions
    and more, images, the first counts samples for certain; others may come with positions first, and tokens with them.

    Args:
        name: Of the block.
        block: Its `batch_first`, where it has one, is the user's word, and ends the matter.
        tokens: What enters it.
        layout: How they are read.
        given: From `leading_shape`; `None` where nothing is known.

    Raises:
        ValueError: They are as many positions as the model was given samples, and the samples are no multiple of those, or
            are as many as the positions that the model was given.
    """
    if given is None or tokens.ndim != 3 or hasattr(block, "batch_first") or (layout.batch == 1 and len(given) < 4):
        return
    samples, positions = tokens.shape[layout.batch], tokens.shape[1 - layout.batch]
    transposed = [positions, samples] == list(given[:2])  # and the samples happen to be a multiple
    if positions == given[0] != samples and (samples % given[0] or given[0] == 1 or transposed):
        read = "(samples, tokens, channels)" if layout.batch == 0 else "(tokens, samples, channels)"
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} enter block {name!r} and are read as {read}, but the model was given "
            f"{given[0]} samples. {_remedy(layout)}"
        )


def _remedy(layout: Layout) -> str:
    return (
        "Say how they lie by an attribute of each block of the trunk: block.batch_first = "
        f"{layout.batch == 1} if samples come {'first' if layout.batch == 1 else 'second'}, {layout.batch == 0} if not."
    )


def check_square(name: str, block: nn.Module, call: BlockCall) -> bool:
    """Refuse tokens of as many samples as positions whose samples are not where they were expected: samples see no other.

    Args:
        name: Of the block.
        block: Its `batch_first`, or that of its `nn.MultiheadAttention`, is believed, and ends the matter.
        call: What it is called with.

    Returns:
        Whether the matter is settled: no further call of the block need be tried.

    Raises:
        ValueError: What was taken for a sample sees the others.
    """
    tokens = call.tokens
    if tokens.ndim != 3 or len(tokens) != tokens.shape[1] or len(tokens) < 2 or isinstance(tokens, Streams):
        return False
    if hasattr(block, "batch_first") or any(isinstance(inner, nn.MultiheadAttention) for inner in block.modules()):
        return True
    half = len(tokens) // 2
    seen = seeing(block, call, call.layout.batch, slice(0, half))
    if seen is not None and bool(seen[half:].any()):
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} enter block {name!r} and are read as (samples, tokens, channels), but what "
            f"leaves for the last of {len(tokens)} samples depends on the first. {_remedy(call.layout)}"
        )
    return seen is not None


def check_companions(name: str, named: Mapping[str, Any], rows: int, given: tuple[int, ...] | None) -> None:
    """Refuse a block that takes a row per sample of the model beside tokens of which each sample has several rows.

    Which rows of the tokens belong to which of the others only the block knows, and so they cannot be folded alike.

    Args:
        name: Of the block.
        named: Its arguments by name.
        rows: Of the tokens.
        given: From `leading_shape`; `None` where nothing is known.

    Raises:
        ValueError: There is such an argument.
    """
    if given is None or rows == given[0] or rows % given[0]:
        return
    for argument, value in named.items():
        features = isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 2
        if features and len(value) == given[0] and not _SHARED.search(argument):
            raise ValueError(
                f"block {name!r} takes {rows} rows of tokens and, as {argument!r} {tuple(value.shape)}, a row for each of the "
                f"{given[0]} samples that the model was given, so that streams of several tasks cannot share its batch. "
                "Plan inserts in other blocks, or run one task at a time: with dtme.tasks(model, task)."
            )


_SHARED = re.compile(r"mask|bias|pos|rope|rotary|rel", re.IGNORECASE)
"""Names of tables, which may have as many heads as there are samples."""
