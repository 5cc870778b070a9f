"""Digests of what rows are made from, so that other sentences or other weights of the same name are not taken for them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from experiments.text.data.encoding import Reader, shortened
from experiments.text.data.tasks import TextTask

LOADED = (".json", ".txt", ".model", ".safetensors", ".bin")
"""Suffixes of the files of a trunk that can change what it computes: configuration, tokenizer and weights."""
LENGTH = 16
"""Hexadecimal digits of a digest."""


@lru_cache
def digest_of_data(tasks: tuple[TextTask, ...], read: Reader, cut: int | None) -> str:
    """Tells the sentences and targets that are trained and measured on from all others, wherever their files are.

    A process reads them once for each reader.

    Args:
        tasks: Whose files.
        read: Reads a task's files.
        cut: Training sentences of a task, at most.
    """
    found = hashlib.sha256()
    for task in tasks:
        files = read(task)
        for name in (task.train, *task.dev):
            file = shortened(task, files[name], cut) if name == task.train else files[name]
            found.update(repr((task.name, name, len(file.texts))).encode())
            for text, target in zip(file.texts, file.targets, strict=True):
                found.update(repr((tuple(text), float(target))).encode())
    return found.hexdigest()[:LENGTH]


def digest_of_trunk(trunk: str) -> str | None:
    """Tells a trunk in a folder from others in folders of the same name; `None` for an id, which names one trunk alone."""
    folder = Path(trunk)
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in LOADED and path.is_file())
    return _digest_of_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache
def _digest_of_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of paths with size and time of change: a process reads weights once, and again when they have been changed."""
    found = hashlib.sha256()
    for path, size, _ in files:
        found.update(repr((path.name, size)).encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
    return found.hexdigest()[:LENGTH]
