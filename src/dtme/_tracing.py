"""Whether a pass runs as written, operation by operation: only then can something be done behind an operation's back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import torch
from torch.autograd import forward_ad

T = TypeVar("T")
Hook = TypeVar("Hook", bound=Callable[..., object])
COMPILES_HOOKS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
"""Before, torch compiles neither questions to a context variable nor, without mistakes, what a call keeps for its thread."""


def runs_as_written(hook: Hook) -> Hook:
    """A hook that older versions of torch leave out of what they compile: a graph ends before it, and another goes on behind."""
    disable: Any = torch.compiler.disable
    return hook if COMPILES_HOOKS else disable(hook)


def of_this_thread(hook: Hook) -> Hook:
    """A hook that heeds the thread it was made in alone: others may use the model at the same time.

    And those of torch on the way back, where checkpointing runs again what this thread ran before.
    """
    own = threading.get_ident()

    def heed(*given: Any, **named: Any) -> Any:
        if threading.get_ident() == own or torch._C._current_graph_task_id() != -1:
            return hook(*given, **named)
        return None

    return cast(Hook, heed)


class OfThread(threading.local, Generic[T]):
    """An object for each thread.

    What changes is the object and not which one it is: compiled code forgets what it gives a thread to keep (torch 2.14), and
    where it is compiled a second time, behind a break of the graph, it would find what was there before.

    Attributes:
        own: The object of the thread that asks.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self.own = make()
        self._make = make

    def __reduce__(self) -> tuple[type[OfThread[T]], tuple[Callable[[], T]]]:
        """Copies begin anew."""
        return OfThread, (self._make,)


def is_transformed() -> bool:
    """Whether a pass is compiled, traced or transformed."""
    return bool(
        torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._are_functorch_transforms_active()  # pyright: ignore[reportAttributeAccessIssue]
    )


def is_watched() -> bool:
    """Whether a mode sees every operation, or derivatives are taken forwards along with it."""
    return torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
