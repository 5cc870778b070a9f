"""Streams: the copies of the token sequence that serve different tasks, handled by a model's own code as one tensor.

Between the block where streams part and the branch where a task leaves, user code keeps seeing tokens of the shape it
has always seen. `Streams` carries one tensor per stream and does to each what is done to it. Inside a block the streams
are folded into the batch, so that the block, where all the work is, runs once on all of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

from dtme.streams.groups import Groups, common
from dtme.streams.torchjd import is_of_engine, watch_each

_ONE_VALUE = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
_ONE_VALUE |= {"is_nonzero", "equal", "allclose"}
_ONE_ARRAY = {"numpy", "__array__", "__dlpack__"}

_OF_THE_ONE = (Tensor.grad_fn.__get__, Tensor.requires_grad.__get__)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
"""What of lifted streams is told by the one tensor that they hang from."""


class Streams(Tensor):
    """Token streams of several tasks behind the face of one tensor: every operation is done to each stream.

    Not made by users: blocks with task-specific inserts hand it out, branches take their task's stream from it.

    Example:
        >>> groups = ("depth",), ("semseg", "edges")
        >>> both = gather(torch.arange(4.0).view(2, 2, 1, 1).unbind(), groups)
        >>> both.shape, (both + 1).shape
        (torch.Size([2, 1, 1]), torch.Size([2, 1, 1]))
        >>> stream_of(both + 1, "edges").flatten().tolist()
        [3.0, 4.0]
    """

    _streams: tuple[Tensor, ...]
    _groups: Groups
    _folded: tuple[int, Tensor] | None
    _views: tuple[weakref.ref[Streams], ...]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _OF_THE_ONE and not torch.compiler.is_compiling() and _is_lifted(args[0]):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        return _do_to_each(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Streams({self._groups}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def backward(self, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        raise RuntimeError(_LEFT_NO_BRANCH.format(what="backward()", groups=self._groups))


class _HollowStreams(Streams):
    """The form without data of its own, so that what goes past `__torch_function__` finds nothing to take for the tokens.

    Scripted functions, `torch.vmap` and the like call operations on it one level below, where autograd is done with; there, too,
    each is done to every stream, with the stream's own autograd.
    """

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with _with_autograd():
            made = _do_to_each(func, args, kwargs or {})
        return pytree.tree_map(lambda leaf: show(leaf) if isinstance(leaf, Streams) else leaf, made)


@contextmanager
def _with_autograd() -> Iterator[None]:
    """Autograd on again, below the level where it is done with."""
    with ExitStack() as stack:
        for key in ("AutogradFunctionality", "ADInplaceOrView"):
            guard = torch._C._SetExcludeDispatchKeyGuard(getattr(torch._C.DispatchKey, key), False)  # pyright: ignore[reportAttributeAccessIssue]
            stack.enter_context(guard)
        yield


def _do_to_each(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation gives of each stream, as streams."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    groups: Groups = ()
    for leaf in leaves:
        if isinstance(leaf, Streams):
            groups = common(groups, leaf._groups) if groups else leaf._groups
    if getattr(func, "__name__", "") in _ONE_ARRAY:
        raise RuntimeError(_LEFT_NO_BRANCH.format(what=f"{func.__name__}()", groups=groups))
    written = _prepare_write(func, args, kwargs, groups)
    results = []
    for group in groups:
        own = [stream_of(leaf, group[0]) if isinstance(leaf, Streams) else leaf for leaf in leaves]
        own_args, own_kwargs = pytree.tree_unflatten(own, spec)
        results.append(func(*own_args, **own_kwargs))
    if written is not None and results[0] is written._streams[0]:
        return written
    joined = _join(results, groups, func)
    if isinstance(joined, Streams) and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        _remember_view(joined, leaves)
    return joined


_LEFT_NO_BRANCH = (
    "{what} on the streams of {groups}: they differ, and this tensor did not leave the trunk by a task's branch. Give "
    "apply(..., branches={{task: module}}) the module where each task leaves, or run one task: with dtme.tasks(model, task)."
)

_TAKEN_FOR_ONE = (
    "{name}, a torch.autograd.Function, took the streams of {groups} for one tensor, so that gradients would be lost. {remedy} "
    "Or run one task: with dtme.tasks(model, task)."
)
_REMEDIES = {
    "CheckpointFunction": "For activation checkpointing say use_reentrant=False.",
    "BackwardHookFunction": "Register the backward hook (Grad-CAM, captum) on a block, inside one or in a branch.",
}
_OTHERWISE = "Call it inside a block, or in the branches."
_ALIASED = (
    "{name}: streams of {groups} are written in place while a view of them that was taken before is in use, which would not see "
    "it. Write x = x + y in place of x += y in the model."
)
_AUGMENTED = {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "and", "or", "xor", "lshift", "rshift", "pow")
}
_WRITES = {"__setitem__", "__set__", *_AUGMENTED}


def _prepare_write(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], groups: Groups
) -> Streams | None:
    """The streams that an operation writes in place, each a tensor of its own then; `None` where it writes none.

    Streams that leave a block are views of one batch, and autograd lets no one write to several views of a tensor.

    Raises:
        RuntimeError: All tasks share what is written, or a view of it is still in use.
    """
    name = getattr(func, "__name__", "")
    written = kwargs.get("out")
    in_place = name[-1:] == "_" and name[-2:] != "__"  # sliced: not every release of torch can trace `endswith` here
    if in_place or name in _WRITES:
        written = args[0] if args else None
    if not isinstance(written, Tensor):
        return None
    if not isinstance(written, Streams) or written._groups != groups:
        raise RuntimeError(
            f"{name or func}: the model writes task-specific streams into a tensor that all tasks share. "
            "Write it out of place (x = x + y; torch.cat or torch.where instead of indexed assignment), or, where it does so "
            "inside a block, plan inserts for the whole block."
        )
    if torch.compiler.is_compiling() or (written._folded is None and name not in _AUGMENTED):
        return written
    if torch.is_grad_enabled():
        others = (view() for view in written._views)
        if any(view is not None and all(view is not arg for arg in args) for view in others):
            raise RuntimeError(_ALIASED.format(name=name, groups=groups))
        written._streams = tuple(stream.clone() if stream._is_view() else stream for stream in written._streams)
    written._folded = None
    return written


def _remember_view(made: Streams, leaves: Iterable[Any]) -> None:
    """Note on the streams that an operation was given that what it made looks at the same memory."""
    if made._streams[0]._is_view():
        for leaf in leaves:
            if isinstance(leaf, Streams) and leaf._streams[0]._base is made._streams[0]._base:
                leaf._views = (*leaf._views, weakref.ref(made))


def _parts_of(streams: Streams) -> tuple[Tensor, ...]:
    """What streams are made of.

    Autograd leads a function of its own kind past `__torch_function__`: what it does on the way back reaches no stream, but of
    those that have been lifted.
    """
    made_by = _maker_of(streams)
    if not isinstance(made_by, BackwardCFunction):
        return streams._streams
    if _is_lifted(streams):
        return _Lower.apply(streams)
    if is_of_engine(made_by):
        return watch_each(made_by, streams, streams._groups, stream_of)
    name = type(made_by).__name__.removesuffix("Backward")
    raise RuntimeError(_TAKEN_FOR_ONE.format(name=name, groups=streams._groups, remedy=_REMEDIES.get(name, _OTHERWISE)))


def _maker_of(streams: Streams) -> Any:
    """The operation that autograd knows to have made the one tensor."""
    with torch._C.DisableTorchFunctionSubclass():
        return streams.grad_fn


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


def show(streams: Streams) -> Streams:
    """The same streams behind a face that autograd has not seen, and may lead into a graph of its own."""
    return _face(streams._streams, streams._groups, streams._folded, requires_grad=False)


def gather(tensors: Sequence[Tensor], groups: Groups, folded: tuple[int, Tensor] | None = None) -> Streams:
    """Streams made of one tensor per group of tasks."""
    return _face(tensors, groups, folded, requires_grad=tensors[0].requires_grad)


def _face(
    tensors: Sequence[Tensor], groups: Groups, folded: tuple[int, Tensor] | None, *, requires_grad: bool
) -> Streams:
    first = tensors[0]
    if torch.compiler.is_dynamo_compiling():
        made = first.as_subclass(Streams)
    else:
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            _HollowStreams, first.shape, dtype=first.dtype, device=first.device, requires_grad=requires_grad
        )
    made._streams = tuple(tensors)
    made._groups = groups
    made._folded = folded
    made._views = ()
    return made


def stream_of(streams: Tensor, task: str) -> Tensor:
    """The stream that serves a task; a tensor that has not parted serves all.

    Raises:
        KeyError: The task was not computed in this pass.
        RuntimeError: A `torch.autograd.Function` has taken the streams for one tensor.
    """
    if not isinstance(streams, Streams):
        return streams
    parts = streams._streams if torch.compiler.is_compiling() else _parts_of(streams)
    for group, stream in zip(streams._groups, parts, strict=True):
        if task in group:
            return stream
    raise KeyError(task)


def lift(tensor: Tensor) -> Tensor:
    """The same streams, behind a tensor through which their gradients pass."""
    if not isinstance(tensor, Streams) or not tensor._streams[0].requires_grad or not torch.is_grad_enabled():
        return tensor
    return _Lift.apply(tensor._groups, *tensor._streams)


def _is_lifted(streams: Streams) -> bool:
    node = _maker_of(streams)
    while isinstance(node, BackwardCFunction) and type(node).__name__ == "BackwardHookFunctionBackward":
        node = node.next_functions[0][0]
    return isinstance(node, BackwardCFunction) and type(node).__name__ == "_LiftBackward"


class _Lift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: Groups, *parts: Tensor) -> Tensor:
        return show(gather([part.detach() for part in parts], groups))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return None, *gradients[0]._streams


class _Lower(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, streams: Streams) -> tuple[Tensor, ...]:
        ctx.groups = streams._groups
        return tuple(part.detach() for part in streams._streams)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return show(gather([gradient.detach() for gradient in gradients], ctx.groups))
