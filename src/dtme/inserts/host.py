"""The block that an insert sits in: what is read off it once, and what is found out by trying it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtme.inserts.expandable import hiding_buffer
from dtme.trunk.call import BlockCall, argument_names, tokens_key
from dtme.trunk.layout import Layout, layout_of, only_convolves_sequences


class Host:
    """Facts about a block with an insert.

    Attributes:
        name: Its name in the model.
        width: Channels of its tokens.
        argument_names: What it calls its arguments.
        true_hides: What `True` means in a mask of booleans that it takes.
        hiding: A buffer of it that hides later positions.
        kinds: Of the calls that take task tokens: whether the block hides later positions by itself.
        tried: What has been found out by trying the block.
        rows_of: Of its arguments by name: where they have rows, `None` for nowhere, found out by trying.
        dims: Of the layers and parts in it, by name: the dimension of their tokens that holds the samples, found out by
            trying; `None` where none does.
    """

    def __init__(self, name: str, block: nn.Module, width: int, *, expanded: bool) -> None:
        self.name = name
        self.width = width
        self.argument_names = argument_names(block)
        self.true_hides = any(isinstance(inner, nn.MultiheadAttention) for inner in block.modules())
        self.lays_plainly = not self.true_hides and not only_convolves_sequences(block)
        self.hiding = hiding_buffer(block) if expanded else None
        self.kinds: dict[Any, bool] = {}
        self.tried: set[str] = set()
        self.rows_of: dict[str, int | None] = {}
        self.dims: dict[str, int | None] = {}

    def read(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int | None) -> BlockCall:
        """A call of the block.

        Args:
            block: The block.
            args: Positional arguments.
            kwargs: Named arguments.
            batch: The dimension of the samples, where it is known from the block around this one.

        Raises:
            ValueError: It holds no tokens, or they lie in no known way.
        """
        try:
            key = tokens_key(args, kwargs, self.argument_names)
            tokens = args[key] if isinstance(key, int) else kwargs[key]
            return BlockCall(args, kwargs, self.argument_names, key, self._layout_of(block, tokens, batch))
        except ValueError as why:
            raise ValueError(f"block {self.name!r}: {why} Plan inserts in other blocks.") from None

    def _layout_of(self, block: nn.Module, tokens: Tensor, batch: int | None) -> Layout:
        """As `layout_of`, without looking through all modules of the block at every call where none can say anything."""
        if batch is not None and tokens.ndim == 3:
            return Layout(batch=batch, token=1 - batch)
        if tokens.ndim == 3 and self.lays_plainly and not hasattr(block, "batch_first"):
            return Layout(batch=0, token=1)
        return layout_of(block, tokens)


def wide_dtype(block: nn.Module) -> Tensor:
    """A tensor like those that an insert of a block starts from: on its device, in its type, or float32 where that is narrower.

    Learning rates are too small for the steps of half precision, and gradients for its range.

    Example:
        >>> wide_dtype(nn.Linear(2, 2).bfloat16()).dtype, wide_dtype(nn.Linear(2, 2).double()).dtype
        (torch.float32, torch.float64)
    """
    like = next((p.detach() for p in block.parameters() if torch.is_floating_point(p)), torch.zeros(()))
    return like if like.dtype.itemsize >= 4 else torch.empty((), dtype=torch.float32, device=like.device)
