"""Whether a pass runs as written, operation by operation: only then can something be done behind an operation's back."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def is_transformed() -> bool:
    """Whether a pass is compiled, traced or transformed."""
    return bool(
        torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._are_functorch_transforms_active()  # pyright: ignore[reportAttributeAccessIssue]
    )


def is_watched() -> bool:
    """Whether a mode sees every operation, or derivatives are taken forwards along with it."""
    return torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]


def is_replayed() -> bool:
    """Whether a mode writes down every operation to repeat it: selective checkpointing, or a tracer."""
    modes = _get_current_dispatch_mode_stack()
    return any(type(mode).__module__.startswith(("torch.utils.checkpoint", "torch.fx")) for mode in modes)
