"""`dtme env`: what a report of a fault has to say."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from dtme.cli.answer import Answer, listed

PACKAGES = (
    "torch", "numpy", "safetensors", "huggingface_hub", "triton", "timm", "transformers", "peft", "accelerate", "lightning",
    "matplotlib", "jinja2", "torchmetrics", "tyro", "rich",
)  # fmt: skip


def env() -> Answer:
    """Print versions and devices, for reports of faults. No name of the machine, no path."""
    import torch

    import dtme

    found = {"dtme": dtme.__version__, "python": platform.python_version(), "system": platform.platform()}
    found |= {package: _version(package) for package in PACKAGES}
    gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    found |= {
        "cuda": torch.version.cuda or "none in this torch",
        "gpus": ", ".join(gpus) or "none",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
    }
    return Answer(found, listed(found, ""))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
