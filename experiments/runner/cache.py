"""Tensors that are made once and kept as safetensors."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dtme._files import written_whole

_STRANGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError, MemoryError)
"""What else is raised where the head of a file tells of tensors that there are none of; too deep lists are a RuntimeError."""


def cache_dir() -> Path:
    """The folder of the cache: `$DTME_CACHE`, or `~/.cache/dtme`."""
    return Path(os.environ.get("DTME_CACHE") or Path.home() / ".cache" / "dtme")


def cached(key: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors kept under `key`; if there are none, or they are damaged, `make` makes them and they are kept.

    A file appears under its name only when it is complete. Two processes that miss at the same time both make the
    tensors, and the last one's file stays.

    Args:
        key: Path below `cache_dir()`, without a suffix. All that the tensors depend on belongs into it, with a version
            of the code that makes them.
        make: Makes the tensors, on the CPU.

    Raises:
        OSError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> os.environ["DTME_CACHE"] = tempfile.mkdtemp()
        >>> cached("squares", lambda: {"x": torch.arange(3) ** 2})["x"]
        tensor([0, 1, 4])
        >>> cached("squares", lambda: {})["x"]
        tensor([0, 1, 4])
        >>> del os.environ["DTME_CACHE"]
    """
    path = cache_dir() / f"{key}.safetensors"
    kept = _read(path)
    if kept is not None:
        return kept
    tensors = {name: tensor.contiguous() for name, tensor in make().items()}
    _write(path, tensors)
    return tensors


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors in a file, or None where it is missing, cannot be read or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            checksums = json.loads((file.metadata() or {}).get("crc32", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, *_STRANGE):
        return None
    return tensors if checksums == _checksums(tensors) else None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a file beside its place and moves it there in one step."""
    try:
        with written_whole(path) as part:
            save_file(tensors, part, metadata={"crc32": json.dumps(_checksums(tensors))})
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"cannot write the cache file {path}; set DTME_CACHE to a folder with space to write ({error})"
        ) from error


def _checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """A checksum of each tensor's bytes, which tells a flipped bit."""
    return {name: zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data) for name, tensor in tensors.items()}
