"""Streams: the copies of the token sequence that serve different tasks, handled by a model's own code as one tensor.

Between the block where streams part and the branch where a task leaves, user code keeps seeing tokens of the shape it
has always seen. `Streams` carries one tensor per stream and does to each what is done to it. Inside a block the streams
are folded into the batch, so that the block, where all the work is, runs once on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

Groups = tuple[tuple[str, ...], ...]
"""Which tasks each stream serves, in order."""

_ONE_VALUE = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
_ONE_VALUE |= {"is_nonzero", "equal", "allclose"}
_ONE_ARRAY = {"numpy", "__array__", "__dlpack__"}
_WRITES = {"__setitem__"} | {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "and", "or", "xor", "lshift", "rshift")
}


class Streams(Tensor):
    """Token streams of several tasks behind the face of one tensor: every operation is done to each stream.

    Not made by users: blocks with task-specific inserts hand it out, branches take their task's stream from it.

    Example:
        >>> both = part(torch.arange(4.0).view(4, 1, 1), (("depth",), ("semseg", "edges")), dim=0)
        >>> both.shape, (both + 1).shape
        (torch.Size([2, 1, 1]), torch.Size([2, 1, 1]))
        >>> stream_of(both + 1, "edges").flatten().tolist()
        [3.0, 4.0]
    """

    _streams: tuple[Tensor, ...]
    _groups: Groups
    _folded: tuple[int, Tensor] | None

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs or {}))
        groups: Groups = ()
        for leaf in leaves:
            if isinstance(leaf, Streams):
                groups = common(groups, leaf._groups) if groups else leaf._groups
        if getattr(func, "__name__", "") in _ONE_ARRAY:
            raise RuntimeError(_LEFT_NO_BRANCH.format(what=f"{func.__name__}()", groups=groups))
        _check_writes(func, args, kwargs or {})
        results = []
        for group in groups:
            own = [stream_of(leaf, group[0]) if isinstance(leaf, Streams) else leaf for leaf in leaves]
            own_args, own_kwargs = pytree.tree_unflatten(own, spec)
            results.append(func(*own_args, **own_kwargs))
        return _join(results, groups, func)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Streams({self._groups}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def backward(self, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        raise RuntimeError(_LEFT_NO_BRANCH.format(what="backward()", groups=self._groups))


class _TracedStreams(Streams):
    """The form that tracing with fake tensors accepts: a shell without data, whose operations never reach the dispatcher."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"streams reached {func} whole; they are folded before any kernel runs.")


_LEFT_NO_BRANCH = (
    "{what} on the streams of {groups}: they differ, and this tensor did not leave the trunk by a task's branch. Give "
    "apply(..., branches={{task: module}}) the module where each task leaves, or run one task: with dtme.tasks(model, task)."
)


def _check_writes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep an in-place operation from writing every stream over the one tensor it is given."""
    name = getattr(func, "__name__", "")
    written = kwargs.get("out")
    in_place = name[-1:] == "_" and name[-2:] != "__"  # sliced: not every release of torch can trace `endswith` here
    if in_place or name in _WRITES:
        written = args[0] if args else None
    if isinstance(written, Tensor) and not isinstance(written, Streams):
        raise RuntimeError(
            f"{name or func}: the model writes task-specific streams into a tensor that all tasks share. "
            "Write it out of place (x = x + y; torch.cat or torch.where instead of indexed assignment), or, where it does so "
            "inside a block, plan inserts for the whole block."
        )


def _check_gradients(streams: Streams) -> None:
    """Autograd leads a function of its own kind past `__torch_function__`: what it does on the way back reaches no stream."""
    with torch._C.DisableTorchFunctionSubclass():
        made_by = streams.grad_fn
    if isinstance(made_by, BackwardCFunction):
        name = type(made_by).__name__.removesuffix("Backward")
        raise RuntimeError(
            f"{name}, a torch.autograd.Function, took the streams of {streams._groups} for one tensor, so that gradients would "
            "be lost. For activation checkpointing say use_reentrant=False; call any other inside a block, or in the branches."
        )


def _join(results: list[Any], groups: Groups, func: Callable[..., Any]) -> Any:
    first = results[0]
    if isinstance(first, Tensor):
        return gather(results, groups)
    if isinstance(first, tuple | list | dict) and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(first)):
        flat = [pytree.tree_flatten(result) for result in results]
        joined = [
            gather(list(leaves), groups) if isinstance(leaves[0], Tensor) else leaves[0]
            for leaves in zip(*(leaves for leaves, _ in flat), strict=True)
        ]
        return pytree.tree_unflatten(joined, flat[0][1])
    if getattr(func, "__name__", "") in _ONE_VALUE and any(result != first for result in results[1:]):
        raise RuntimeError(_LEFT_NO_BRANCH.format(what=f"{func.__name__}()", groups=groups))
    return first


def gather(tensors: Sequence[Tensor], groups: Groups, folded: tuple[int, Tensor] | None = None) -> Streams:
    """Streams made of one tensor per group of tasks."""
    first = tensors[0]
    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            _TracedStreams, first.shape, dtype=first.dtype, device=first.device, requires_grad=first.requires_grad
        )
    else:
        made = first.as_subclass(Streams)
    made._streams = tuple(tensors)
    made._groups = groups
    made._folded = folded
    return made


def part(folded: Tensor, groups: Groups, dim: int) -> Streams:
    """Streams out of a batch that holds them one after another along `dim`."""
    return gather(folded.unflatten(dim, (len(groups), -1)).unbind(dim), groups, (dim, folded))


def stream_of(streams: Tensor, task: str) -> Tensor:
    """The stream that serves a task; a tensor that has not parted serves all.

    Raises:
        KeyError: The task was not computed in this pass.
        RuntimeError: A `torch.autograd.Function` has taken the streams for one tensor.
    """
    if not isinstance(streams, Streams):
        return streams
    if not torch.compiler.is_compiling():
        _check_gradients(streams)
    for group, stream in zip(streams._groups, streams._streams, strict=True):
        if task in group:
            return stream
    raise KeyError(task)


def groups_of(tokens: Tensor, tasks: tuple[str, ...]) -> Groups:
    """Which tasks share which stream: all one, before streams part."""
    return tokens._groups if isinstance(tokens, Streams) else (tasks,)


def refine(groups: Groups, parting: Sequence[str]) -> Groups:
    """Groups once each of the `parting` tasks goes its own way; the others of a group stay together.

    Example:
        >>> refine((("depth", "semseg", "edges"),), ["semseg"])
        (('depth', 'edges'), ('semseg',))
    """
    if all(len(group) == 1 for group in groups):
        return groups
    order = {task: place for place, task in enumerate(task for group in groups for task in group)}
    parts: list[tuple[str, ...]] = []
    for group in groups:
        staying = tuple(task for task in group if task not in parting)
        parts += [staying] if staying else []
        parts += [(task,) for task in group if task in parting]
    return tuple(sorted(parts, key=lambda tasks: order[tasks[0]]))


def common(first: Groups, second: Groups) -> Groups:
    """The coarsest groups that split no stream of either.

    Example:
        >>> common((("depth", "semseg"), ("edges",)), (("depth",), ("semseg", "edges")))
        (('depth',), ('semseg',), ('edges',))
    """
    if first == second:
        return first
    both = [tuple(task for task in one if task in other) for one in first for other in second]
    return tuple(tasks for tasks in both if tasks)


def fold(tokens: Tensor, groups: Groups, dim: int) -> Tensor:
    """One batch that holds the tokens of every group, one group after another along `dim`."""
    if not isinstance(tokens, Streams):
        if len(groups) == 1:
            return tokens
        return tokens.repeat(*(len(groups) if axis == dim else 1 for axis in range(tokens.ndim)))
    if tokens._folded is not None and tokens._folded[0] == dim and tokens._groups == groups:
        return tokens._folded[1]
    return torch.cat([stream_of(tokens, group[0]) for group in groups], dim)
