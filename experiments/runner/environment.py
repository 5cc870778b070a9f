"""The machine and the versions that results were made with, as their lines name them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def hardware() -> str:
    """Cores and processor, and the GPU if there is one.

    Example:
        >>> str(os.cpu_count()) in hardware()
        True
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {_processor()}, {gpu}"


def versions() -> dict[str, str]:
    """Of this library, those that its results depend on, and python.

    Example:
        >>> list(versions())
        ['dtme', 'torch', 'timm', 'python']
    """
    return {name: version(name) for name in ("dtme", "torch", "timm")} | {"python": platform.python_version()}


def _processor() -> str:
    """Its model, where the system tells, otherwise its architecture."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
