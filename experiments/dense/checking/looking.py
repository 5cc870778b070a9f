"""Looking at the files of many images, by their headers or pixel by pixel, on as many processes as there are."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from typing import Literal

from experiments.dense.checking.statistics import Broken, Seen
from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.headers import read_header
from experiments.dense.datasets.kinds import Kind
from experiments.dense.datasets.reader import IMAGE, Reader

Depth = Literal["headers", "pixels"]
Progress = Callable[[int, int], None]

_CHUNK = 64  # images a worker is sent at a time


def look(
    reader: Reader,
    names: Sequence[str],
    kinds: Mapping[str, Kind],
    depth: Depth,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Seen:
    """What the files of these images hold; one that is not there is passed over.

    Args:
        reader: Of the data.
        names: Of the images.
        kinds: Of the targets to look at, besides the picture.
        depth: `"headers"`: their first and last bytes; `"pixels"`: decoded.
        workers: Processes; by default one for each core, and none but this where there is little to do.
        progress: Told how many images are done, and of how many.
    """
    count = workers or os.cpu_count() or 1
    chunks = [names[first : first + _CHUNK] for first in range(0, len(names), _CHUNK)]
    seen, done = Seen(), 0
    if count == 1 or len(names) <= 2 * _CHUNK:
        for chunk in chunks:
            seen.merge(look_at(reader, chunk, kinds, depth))
            done += len(chunk)
            if progress is not None:
                progress(done, len(names))
        return seen
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of the parent's threads
    with ProcessPoolExecutor(min(count, len(chunks)), context, _start_worker, (reader, dict(kinds), depth)) as pool:
        try:
            left = iter(chunks)
            running = {pool.submit(_look, chunk): len(chunk) for chunk in islice(left, 4 * count)}
            while running:
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    seen.merge(future.result())
                    done += running.pop(future)
                    running |= {pool.submit(_look, chunk): len(chunk) for chunk in islice(left, 1)}
                if progress is not None:
                    progress(done, len(names))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return seen


def look_at(reader: Reader, names: Sequence[str], kinds: Mapping[str, Kind], depth: Depth) -> Seen:
    """As `look`, in this process."""
    seen = Seen()
    for name in names:
        of_image: dict[str, tuple[int, int]] = {}
        for of in (IMAGE, *kinds):
            if not reader.has(name, of):
                continue
            try:
                size = _header(seen, reader, name, of) if depth == "headers" else _pixels(seen, reader, name, of, kinds)
            except DataError as error:
                path = str(error.path or reader.place(name, of))
                seen.broken.append(Broken(of, path, error.fault, str(error)))
                continue
            if size is not None:
                of_image[of] = size
        _compare_sizes(seen, reader, name, of_image)
    return seen


def _header(seen: Seen, reader: Reader, name: str, of: str) -> tuple[int, int] | None:
    header = read_header(reader.place(name, of))
    own = seen.of(of)
    own.files += 1
    if header.size is not None:
        own.sizes[header.size] += 1
        own.bits[header.channels, header.bits] += 1
    return header.size


def _pixels(seen: Seen, reader: Reader, name: str, of: str, kinds: Mapping[str, Kind]) -> tuple[int, int]:
    values = reader.read(name, of)
    own, size = seen.of(of), (values.shape[-2], values.shape[-1])
    own.files += 1
    own.sizes[size] += 1
    own.add(values, kinds.get(of))
    return size


def _compare_sizes(seen: Seen, reader: Reader, name: str, sizes: Mapping[str, tuple[int, int]]) -> None:
    if IMAGE not in sizes:
        return
    height, width = sizes[IMAGE]
    for of, own in sizes.items():
        if own != (height, width):
            path = str(reader.place(name, of))
            said = f"{path} is {own[0]} x {own[1]}, but its picture is {height} x {width}."
            seen.broken.append(Broken(of, path, "wrong", said))


_reader: Reader | None = None  # of this worker, with the next two, set once when it starts
_kinds: Mapping[str, Kind] = {}
_depth: Depth = "headers"


def _start_worker(reader: Reader, kinds: Mapping[str, Kind], depth: Depth) -> None:
    global _reader, _kinds, _depth
    _reader, _kinds, _depth = reader, kinds, depth
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the workers
    torch.set_num_threads(1)


def _look(names: Sequence[str]) -> Seen:
    assert _reader is not None
    return look_at(_reader, names, _kinds, _depth)
