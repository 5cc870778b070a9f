"""Products of float32 in float32, whatever the user allows for the model: their signs and differences are what counts here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Neither TF32 nor bfloat16 in products of float32, and no autocast, while the context lasts.

    Example:
        >>> square = torch.ones(2, 2)
        >>> with torch.autocast("cpu", torch.bfloat16), full_precision(square.device):
        ...     print((square @ square).dtype)
        torch.float32
    """
    kept = _allow()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _allow(*kept)


def _allow(*precisions: str) -> list[str]:
    """Set what products of float32 may be computed in, on a GPU and on the CPU, and tell what was set before."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9, where one setting is for all
        kept = [torch.get_float32_matmul_precision()]
        torch.set_float32_matmul_precision(*(precisions or ("highest",)))
        return kept
    settings: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # pyright: ignore[reportAttributeAccessIssue]
    kept = [setting.fp32_precision for setting in settings]
    for setting, precision in zip(settings, precisions or ("ieee", "ieee"), strict=True):
        setting.fp32_precision = precision
    return kept
