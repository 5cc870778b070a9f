"""Sentences and targets out of tab- or comma-separated files, plain or gzip; what is wrong is named by file and line."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TextIO

from experiments.text.data.tasks import TextTask

LONGEST, MOST = 2**20, 2**30
"""Characters of a line, and of a file."""
SUFFIXES = (".tsv", ".tsv.gz", ".csv", ".csv.gz")


@dataclass(frozen=True)
class Sentences:
    """A file of a task as it was read.

    Attributes:
        texts: Per row its sentence, or its two sentences.
        targets: Per row a class index or a number.
        source: The file, for messages.
        left_out: Lines of the wrong number of columns that were left out.
    """

    texts: Sequence[tuple[str, ...]]
    targets: Sequence[float]
    source: str
    left_out: int = 0

    @property
    def empty(self) -> int:
        """Rows with a sentence that holds nothing but blanks."""
        return sum(not all(sentence.strip() for sentence in text) for text in self.texts)


def find_file(folder: Path, name: str) -> Path:
    """The file of that name in a task's folder, whatever its suffix of `SUFFIXES`.

    Raises:
        FileNotFoundError: The folder or the file is not there.
        ValueError: There are two of them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder: a task's data is a folder with {name}.tsv or {name}.csv, or .gz of these."
        )
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if not found:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{folder} has no {name} with one of the suffixes {', '.join(SUFFIXES)}; there is {there}."
        )
    if len(found) > 1:
        raise ValueError(
            f"{folder} has {found[0].name} and {found[1].name}, and which is meant is not known: remove one."
        )
    return found[0]


def read_file(path: Path, task: TextTask) -> Sentences:
    """A file of a task.

    Args:
        path: `.tsv` (no quotes, a row a line) or `.csv` (quotes, which may hold commas and line breaks), or `.gz` of these.
        task: Says which columns count.

    Raises:
        ValueError: A column is missing, a line has more or fewer columns than the head, a target is not one of the task's,
            there is no row, there is a head where there should be none, or the file is damaged; the message names file and line.
    """
    texts: list[tuple[str, ...]] = []
    targets: list[float] = []
    left_out = 0
    with _opened(path) as file:
        rows = _rows(file, commas=".csv" in path.suffixes[-2:])
        first = next(rows, None)
        if first is None:  # otherwise nothing would be said to lack a column
            raise _no_row(path)
        head = task.header or first[1]
        places = [_place(head, column, path, task) for column in (*task.text, task.target)]
        for line, cells in chain([first], rows) if task.header else rows:
            if len(cells) != len(head):
                left_out += 1
                if left_out > task.malformed:
                    raise _wrong(path, line, cells, task, f"{_columns(cells, head)} Mend or remove the line.")
                continue
            try:
                targets.append(task.target_of(cells[places[-1]]))
            except ValueError as why:
                raise _wrong(path, line, cells, task, str(why)) from None
            texts.append(tuple(cells[place] for place in places[:-1]))
    if not texts:
        raise _no_row(path)
    return Sentences(texts, targets, str(path), left_out)


def _no_row(path: Path) -> ValueError:
    return ValueError(f"{path} has no row: a split needs at least one sentence. Is the copy complete?")


def _wrong(path: Path, line: int, cells: Sequence[str], task: TextTask, why: str) -> ValueError:
    """The error of a line that is no row; a head where there should be none is told as what it is."""
    named = {cell.strip().casefold() for cell in cells} & {column.casefold() for column in (*task.text, task.target)}
    if task.header is not None and named:
        why = f"{list(cells)} is a head, and files of {task.name!r} have none. Remove the line."
    return ValueError(f"{path}, line {line}: {why}")


def _place(head: Sequence[str], column: str, path: Path, task: TextTask) -> int:
    if column not in head:
        raise ValueError(
            f"{path}, line 1: no column {column!r} in {list(head)}. A column is missing, or the task {task.name!r} names "
            "another one: see its text, target and header."
        )
    return list(head).index(column)


def _columns(cells: Sequence[str], head: Sequence[str]) -> str:
    return f"{len(cells)} columns, but the head has {len(head)}: {list(head)}."


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        # Line ends stay as they are: a carriage return inside a sentence of a .tsv ends no row.
        with opener(path, "rt", encoding="utf-8-sig", newline="" if ".csv" in path.suffixes[-2:] else "\n") as file:  # pyright: ignore[reportCallIssue, reportArgumentType]
            yield file  # pyright: ignore[reportReturnType]
    except UnicodeDecodeError as error:
        line = _first_undecodable(path)
        raise ValueError(f"{path}, line {line} is no UTF-8 text ({error.reason}). Save the file as UTF-8.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}). Fetch it again.") from error


def _first_undecodable(path: Path) -> int:
    """The number of the first line that is no UTF-8; what decodes in large pieces does not tell."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        number = 1
        with suppress(EOFError, zlib.error, gzip.BadGzipFile):  # it is cut short, besides
            while line := file.readline(LONGEST):
                if not _is_utf8(line):
                    return number
                number += line.endswith(b"\n")
        return number


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _rows(file: TextIO, *, commas: bool) -> Iterator[tuple[int, list[str]]]:
    """Number of the line and cells of each row, blank lines left out."""
    if commas:
        reader = csv.reader(_lines(file), strict=True)
        try:
            yield from ((reader.line_num, cells) for cells in reader if not _is_blank(cells))
        except csv.Error as error:
            name = getattr(file, "name", "the file")
            raise ValueError(f"{name}, line {reader.line_num}: {error}. Is a quote left open?") from error
        return
    for number, line in enumerate(_lines(file), 1):
        cells = line.removesuffix("\n").removesuffix("\r").split("\t")
        if not _is_blank(cells):
            yield number, cells


def _is_blank(cells: Sequence[str]) -> bool:
    return len(cells) < 2 and not "".join(cells).strip()


def _lines(file: TextIO) -> Iterator[str]:
    """Lines as the file was opened to end them, none longer and not more in all than sentences are: a packed file may claim any.

    Raises:
        ValueError: A line, or the whole, is longer.
    """
    number = read = 0
    while line := file.readline(LONGEST + 1):
        number, read = number + 1, read + len(line)
        if len(line) > LONGEST or read > MOST:
            what = (
                f"has more than {LONGEST} characters"
                if len(line) > LONGEST
                else f"is beyond the first {MOST} characters"
            )
            raise ValueError(f"{getattr(file, 'name', 'the file')}, line {number} {what}: no file of sentences has.")
        yield line
