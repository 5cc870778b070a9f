"""The machine that results were made on, as their lines name it."""

from __future__ import annotations

import os
import platform
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


def _processor() -> str:
    """Its model, where the system tells, otherwise its architecture."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
