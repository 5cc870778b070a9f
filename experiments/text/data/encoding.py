"""From files to token ids, once: the result is kept in the cache, by the text, the tokenizer and the length."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.runner.cache import cached
from experiments.runner.seeds import hash_of
from experiments.text.data.files import Sentences, find_file, read_file
from experiments.text.data.suite import Encoded, TextSuite
from experiments.text.data.tasks import TextTask
from experiments.text.trunk import load_tokenizer, longest

VERSION = 1
"""Of what `encode` makes, so that a cache of another one is never taken for it."""
AT_ONCE = 1000
"""Sentences that the tokenizer is given at a time."""

Reader = Callable[[TextTask], Mapping[str, Sentences]]
"""Gives a task's files by their names, `train` and `dev` for instance."""


def read_folder(folder: Path, task: TextTask) -> dict[str, Sentences]:
    """A task's files out of the folder that has its name."""
    return {name: read_file(find_file(folder / task.name, name), task) for name in (task.train, *task.dev)}


def load(
    tasks: Sequence[TextTask],
    read: Reader,
    trunk: str,
    *,
    max_length: int = 128,
    cut: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TextSuite:
    """Read and tokenise the files of some tasks.

    Args:
        tasks: Which; two may not share a name.
        read: Reads a task's files: `partial(read_folder, folder)` for a folder with a folder per task.
        trunk: Id or folder of the encoder whose tokenizer is used.
        max_length: Tokens of a sentence or a pair, at most; longer ones are cut, and counted in the suite's remarks.
        cut: Keep so many training sentences of a task, at most, the same ones in every run.
        progress: Told how many files are done, and of how many.

    Raises:
        FileNotFoundError: A folder or file is not there.
        ValueError: A file holds what it must not, or an option does not fit; the message says where and what to do.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"tasks={names}: give at least one task, and each once.")
    if max_length < 8 or (cut is not None and cut < 1):
        raise ValueError(
            f"max_length={max_length}, cut={cut}: give at least 8 tokens, and at least 1 sentence or None."
        )
    tokenizer = load_tokenizer(trunk)
    length = longest(trunk, tokenizer, max_length)
    identity = _identity(tokenizer, length)
    train: dict[str, Encoded] = {}
    dev: dict[str, tuple[Encoded, ...]] = {}
    remarks: list[str] = []
    for place, task in enumerate(tasks):
        files = read(task)
        remarks += [remark for name, file in files.items() for remark in _remarks_of_file(task, name, file)]
        whole = files[task.train]
        if cut is not None and len(whole.texts) > cut:
            remarks.append(f"{task.name}: {cut:,} of {len(whole.texts):,} training sentences are used (cut={cut}).")
        files = {**files, task.train: shortened(task, whole, cut)}
        remarks += [_remark_of_empty(task, name, file) for name, file in files.items() if file.empty]
        encoded = {name: encode(file, tokenizer, length, identity) for name, file in files.items()}
        remarks += [_remark_of_length(task, name, own, length) for name, own in encoded.items() if own.truncated]
        train[task.name] = encoded[task.train]
        dev[task.name] = tuple(encoded[name] for name in task.dev)
        if progress is not None:
            progress(place + 1, len(tasks))
    segments = "token_type_ids" in tokenizer.model_input_names
    scales = {task.name: _scale(task, train[task.name].targets) for task in tasks}
    return TextSuite(tuple(tasks), train, dev, scales, tokenizer.pad_token_id, segments, tuple(remarks))


def shortened(task: TextTask, whole: Sentences, cut: int | None) -> Sentences:
    """The training sentences that are used: all, or so many of them as `cut` says, the same ones in every run."""
    if cut is None or len(whole.texts) <= cut:
        return whole
    generator = torch.Generator().manual_seed(hash_of("cut", task.name))
    rows = torch.randperm(len(whole.texts), generator=generator)[:cut].tolist()
    return replace(whole, texts=[whole.texts[row] for row in rows], targets=[whole.targets[row] for row in rows])


def _scale(task: TextTask, targets: Tensor) -> tuple[float, float]:
    if task.labels is not None:
        return 0.0, 1.0
    return float(targets.double().mean()), max(float(targets.double().std(correction=0)), 1e-6)


def _remarks_of_file(task: TextTask, name: str, sentences: Sentences) -> list[str]:
    remarks = []
    official = [task.rows[name], *task.other_rows.get(name, ())] if name in task.rows else []
    found = len(sentences.texts)
    if official and found not in official:
        counts = " or ".join(f"{count:,}" for count in official)
        remarks.append(
            f"{task.name}, {name}: {found:,} rows, but the official split has {counts}: partial or unofficial, and not to be "
            "compared with published figures."
        )
    if sentences.left_out:
        remarks.append(f"{task.name}, {name}: {sentences.left_out} malformed lines were left out.")
    return remarks


def _remark_of_empty(task: TextTask, name: str, used: Sentences) -> str:
    what = "sentences are empty" if len(task.text) == 1 else "pairs have an empty sentence"
    return f"{task.name}, {name}: {used.empty:,} of {len(used.texts):,} {what}."


def _remark_of_length(task: TextTask, name: str, encoded: Encoded, length: int) -> str:
    return f"{task.name}, {name}: {encoded.truncated:,} of {len(encoded):,} sentences were cut to {length} tokens."


def _identity(tokenizer: Any, length: int) -> str:
    """Tells a tokenizer and a length from all others; to be taken before the tokenizer is used, which changes its state."""
    state = getattr(tokenizer, "_tokenizer", None)  # all that a fast tokenizer does, written out
    by = state.to_str() if state is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(repr((VERSION, length, type(tokenizer).__name__, by)).encode()).hexdigest()


def encode(sentences: Sentences, tokenizer: Any, length: int, identity: str) -> Encoded:
    """Sentences as token ids, from the cache where they have been tokenised before.

    Args:
        sentences: Texts and targets.
        tokenizer: Of the trunk.
        length: Tokens at most.
        identity: Of the tokenizer and the length.
    """
    digest = hashlib.sha256(identity.encode())
    for text in sentences.texts:
        digest.update(repr(text).encode())
    found = cached(f"text/{digest.hexdigest()[:24]}", lambda: _tokenised(sentences.texts, tokenizer, length))
    targets = torch.tensor(sentences.targets, dtype=torch.float32)
    return Encoded(found["ids"], found["segments"], found["offsets"], targets, int(found["truncated"]))


def _tokenised(texts: Sequence[tuple[str, ...]], tokenizer: Any, length: int) -> dict[str, Tensor]:
    ids: list[list[int]] = []
    segments: list[list[int]] = []
    truncated = 0
    for start in range(0, len(texts), AT_ONCE):
        columns = [list(column) for column in zip(*texts[start : start + AT_ONCE], strict=True)]
        made = tokenizer(*columns, truncation=False, verbose=False)
        too_long = [row for row, own in enumerate(made["input_ids"]) if len(own) > length]
        truncated += len(too_long)
        parts = {"input_ids": made["input_ids"], "token_type_ids": made.get("token_type_ids")}
        if too_long:
            short = tokenizer(
                *([column[row] for row in too_long] for column in columns), truncation=True, max_length=length
            )
            for name, rows in parts.items():
                if rows is not None:
                    for place, row in enumerate(too_long):
                        rows[row] = short[name][place]
        ids += parts["input_ids"]
        segments += parts["token_type_ids"] or [[0] * len(own) for own in parts["input_ids"]]
    ends = torch.tensor([len(own) for own in ids]).cumsum(0)
    return {
        "ids": torch.tensor([token for own in ids for token in own], dtype=torch.int32),
        "segments": torch.tensor([segment for own in segments for segment in own], dtype=torch.int8),
        "offsets": torch.cat([torch.zeros(1, dtype=torch.long), ends]),
        "truncated": torch.tensor(truncated),
    }
