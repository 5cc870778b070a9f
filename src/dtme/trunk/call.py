"""One call of a block: which argument its tokens are, how they lie, what the others are called and which of them have rows."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dtme._wrappers import unwrapped
from dtme.streams.tensor import Streams
from dtme.trunk.batched_arguments import first_dim, is_one_for_all, rows_dim
from dtme.trunk.layout import Layout, layout_of

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def argument_names(block: nn.Module) -> tuple[str, ...]:
    """What a block calls its positional arguments."""
    return tuple(inspect.signature(unwrapped(block).forward).parameters)


def tokens_key(args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Sequence[str] = ()) -> int | str:
    """Where in a block's call its tokens are: the first floating-point tensor, positional before named.

    Args:
        args: Positional arguments.
        kwargs: Named arguments.
        names: What the block calls its arguments; named ones are looked through in this order, whatever the caller's.

    Raises:
        ValueError: There is none.
    """
    named = [name for name in names if name in kwargs] + [name for name in kwargs if name not in names]
    for place, value in [*enumerate(args), *((name, kwargs[name]) for name in named)]:
        if isinstance(value, Tensor) and torch.is_floating_point(value):
            return place
    raise ValueError("a block was called without a floating-point tensor: no tokens enter it.")


@dataclass
class BlockCall:
    """What a block is called with, and what is known of it. Asked once, when tokens enter; nothing is changed in place.

    Attributes:
        args: Positional arguments.
        kwargs: Named arguments.
        names: What the block calls its arguments.
        key: Which of them the tokens are: a place among `args` or a name among `kwargs`.
        layout: How the tokens lie.

    Example:
        >>> block, x = nn.TransformerEncoderLayer(8, 2, batch_first=True), torch.zeros(3, 5, 8)
        >>> call = BlockCall((x,), {"is_causal": True}, argument_names(block), 0, Layout(batch=0, token=1))
        >>> call.rows, call.length, call.named()["src_mask"], call.with_tokens(x[:, :4]).length
        (3, 5, None, 4)
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]
    key: int | str
    layout: Layout

    @classmethod
    def read(cls, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BlockCall:
        """What a block without insert is called with.

        Raises:
            ValueError: It holds no tokens, or they lie in no known way.
        """
        names = argument_names(block)
        key = tokens_key(args, kwargs, names)
        return cls(args, kwargs, names, key, layout_of(block, args[key] if isinstance(key, int) else kwargs[key]))

    @property
    def arguments(self) -> Arguments:
        """Both kinds of arguments, as a forward pre-hook gives them back."""
        return self.args, self.kwargs

    @property
    def tokens(self) -> Tensor:
        """The tokens that enter the block."""
        return self.args[self.key] if isinstance(self.key, int) else self.kwargs[self.key]

    @property
    def rows(self) -> int:
        """Samples of the tokens, of all streams together where these are folded."""
        return self.tokens.shape[self.layout.batch]

    @property
    def length(self) -> int | None:
        """Tokens of a sample; `None` on a grid."""
        return None if self.layout.token is None else self.tokens.shape[self.layout.token]

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BlockCall:
        """The same call with the arguments that the block was given in the end."""
        return replace(self, args=args, kwargs=kwargs)

    def named(self) -> dict[str, Any]:
        """The arguments by name, those left to their defaults as `None`."""
        known = dict.fromkeys((name for name in self.names if name not in ("args", "kwargs")), None)
        return {**known, **dict(zip(self.names, self.args, strict=False)), **self.kwargs}

    def with_tokens(self, tokens: Tensor) -> BlockCall:
        """The call with other tokens, wherever it was given these: some take them as query, as key and as value."""
        own = self.tokens
        return replace(
            self,
            args=tuple(tokens if value is own else value for value in self.args),
            kwargs={name: tokens if value is own else value for name, value in self.kwargs.items()},
        )

    def with_argument(self, name: str, value: Any) -> BlockCall:
        """The call with one argument exchanged, or added."""
        place = self.names.index(name) if name in self.names else len(self.args)
        if place < len(self.args):
            return replace(self, args=(*self.args[:place], value, *self.args[place + 1 :]))
        return replace(self, kwargs={**self.kwargs, name: value})

    def change_each(self, change: Callable[[str, Any], Any]) -> BlockCall:
        """The call with `change(name, argument)` for every argument."""
        names = (*self.names, *[""] * len(self.args))
        return replace(
            self,
            args=tuple(change(names[place], value) for place, value in enumerate(self.args)),
            kwargs={name: change(name, value) for name, value in self.kwargs.items()},
        )

    def change_rows(
        self,
        change: Callable[..., Tensor],
        rows: int,
        known: Mapping[str, int | None] | None = None,
        seen: Sequence[tuple[Tensor, int | None]] = (),
    ) -> BlockCall:
        """The call with `change(argument, dim=...)` for every argument, the tokens excepted, that has rows in `dim`.

        Args:
            change: What becomes of such an argument.
            rows: How many rows it has, or a multiple of so many.
            known: Of arguments by name: where their rows are, `None` for nowhere.
            seen: The same of tensors in them. Of others it is read off their sizes.

        Raises:
            ValueError: An argument differs between streams and has no row per sample.
        """
        tokens, length = self.tokens, self.length

        def changed(name: str, value: Any) -> Any:
            def leaf_changed(leaf: Any) -> Any:
                if not isinstance(leaf, Tensor) or leaf is tokens:
                    return leaf
                for other, place in seen:
                    if other is leaf:
                        return leaf if place is None else change(leaf, dim=place)
                if known is not None and name in known and not isinstance(leaf, Streams):
                    dim = known[name]
                else:
                    dim = rows_dim(name, leaf, rows, length, self.layout.batch)
                if dim is None and isinstance(leaf, Streams):
                    if is_one_for_all(leaf, rows):
                        return leaf._streams[0]
                    dim = first_dim(name, leaf, rows)
                return leaf if dim is None else change(leaf, dim=dim)

            return pytree.tree_map(leaf_changed, value) if not isinstance(value, Tensor) else leaf_changed(value)

        return self.change_each(changed)

    def with_own_caches(self) -> BlockCall:
        """The call with copies of its caches of keys and values: a run beside the pass adds nothing to the pass's own."""
        return self.change_each(lambda _, value: copy.deepcopy(value) if hasattr(value, "get_seq_length") else value)
