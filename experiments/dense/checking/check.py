"""Checking the data of a suite: all of it, or what can be had cheaply before a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from experiments.dense.checking.checked import CheckedSuite
from experiments.dense.checking.findings import Findings
from experiments.dense.checking.looking import look
from experiments.dense.checking.statistics import Broken, MapStatistics, Seen, size_words
from experiments.dense.datasets.errors import DataError
from experiments.dense.datasets.facts import DenseSuite
from experiments.dense.datasets.kinds import Kind
from experiments.dense.datasets.reader import IMAGE, Reader

Read = Literal["listing", "headers", "pixels"]
"""How much of every file is read: nothing; its first and last bytes, and some of the files whole; all of it."""

Told = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and of how much."""

_CHEAP = 60_000  # files whose headers are read before a run
_LOOKED_AT = 16  # images that are decoded before a run


def check(
    entry: CheckedSuite,
    data: Path,
    choices: Any = None,
    *,
    read: Read | None = None,
    looked_at: int | None = None,
    workers: int | None = None,
    told: Told | None = None,
) -> Findings:
    """Everything there is to say about the data of a suite; errors are what a run with these choices would fail of.

    Args:
        entry: The suite.
        data: Its folder; never written to.
        choices: As of the run; by default the suite's defaults.
        read: How much of the files is read; by default all pixels, or of a data set too large for that headers.
        looked_at: How many images are decoded where headers are read; spread evenly.
        workers: Processes; by default one for each core.
        told: Told of progress.
    """
    choices = entry.choices() if choices is None else choices
    read = read or ("pixels" if entry.looked_at is None else "headers")
    say = told or (lambda about, done, total: None)
    findings = Findings(entry.name, data)
    suite = _suite(entry, data, choices, findings, say)
    if suite is None:
        return findings
    names = _listed(suite, choices, findings, say)
    seen = Seen()
    kinds: dict[str, Kind] = {task.name: task.kind for task in suite.tasks}
    decoded = names if read == "pixels" else spread(names, looked_at or entry.looked_at or _LOOKED_AT)
    if read == "headers" and suite.reader.one_file_each:
        progress = lambda done, total: say("headers", done, total)  # noqa: E731
        seen.merge(look(suite.reader, names, kinds, "headers", workers=workers, progress=progress))
    if read != "listing":
        progress = lambda done, total: say("pixels", done, total)  # noqa: E731
        broken = {each.path for each in seen.broken}
        pixels = look(suite.reader, decoded, kinds, "pixels", workers=workers, progress=progress)
        pixels.broken = [each for each in pixels.broken if each.path not in broken]
        _report_maps(suite, seen.maps or pixels.maps, pixels.maps, findings)
        seen = _joined(seen, pixels)
        _report_broken(seen.broken, choices, findings)
        entry.suspect(suite, seen, findings)
    return findings


def check_before_run(entry: CheckedSuite, suite: DenseSuite, data: Path, choices: Any) -> Findings:
    """What can be had in seconds: whether files are there and whole, and whether a few images hold what they should.

    Args:
        entry: The suite's.
        suite: As the run has it.
        data: Its folder.
        choices: As of the run.
    """
    findings = Findings(entry.name, data)
    names = _listed(suite, choices, findings, lambda about, done, total: None)
    kinds: dict[str, Kind] = {task.name: task.kind for task in suite.tasks}
    seen = Seen()
    if suite.reader.one_file_each:
        cheap = spread(names, _CHEAP // (len(kinds) + 1))
        seen = look(suite.reader, cheap, kinds, "headers", workers=1)
    broken = {each.path for each in seen.broken}
    pixels = look(suite.reader, spread(names, _LOOKED_AT), kinds, "pixels", workers=1)
    pixels.broken = [each for each in pixels.broken if each.path not in broken]
    seen = _joined(seen, pixels)
    _report_broken(seen.broken, choices, findings)
    entry.suspect(suite, seen, findings)
    return findings


def spread(names: Sequence[str], count: int) -> list[str]:
    """So many of the names, evenly spread.

    >>> spread(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    """
    if len(names) <= count:
        return list(names)
    if count == 1:
        return [names[0]]
    return [names[place * (len(names) - 1) // (count - 1)] for place in range(count)]


def _suite(entry: CheckedSuite, data: Path, choices: Any, findings: Findings, say: Told) -> DenseSuite | None:
    """The suite, as complete as the copy allows; why a run could not make it is added to the findings."""
    try:
        reader = entry.opened(data, choices, lambda done, total: say("listing", done, total))
    except (DataError, ValueError, OSError, ImportError) as error:
        findings.add("error", "layout", str(error))
        return None
    findings.add("fact", "layout", f"{reader.layout}, in {reader.root}")
    wanted = [task for task in entry.tasks if choices.tasks is None or task in choices.tasks]
    absent = [task for task in wanted if task not in reader.tasks]
    if absent:
        there = tuple(task for task in wanted if task in reader.tasks)
        findings.add(
            "error",
            "tasks",
            f"nothing is there of {', '.join(absent)}. A run needs --tasks {' '.join(there)}, or a whole copy: {entry.sources}.",
        )
        choices = replace(choices, tasks=there)
    return _made(entry, reader, choices, findings)


def _made(entry: CheckedSuite, reader: Reader, choices: Any, findings: Findings) -> DenseSuite | None:
    """The suite by these choices or, once it is said why not, by lenient ones."""
    try:
        suite = entry.made_from(reader, choices)
    except (DataError, ValueError) as error:
        if not any(finding.said == str(error) for finding in findings.found):
            findings.add("error", "splits", str(error))
        lenient = replace(choices, **entry.lenient)
        return None if lenient == choices else _made(entry, reader, lenient, findings)
    entry.official(suite, findings)
    return suite


def _listed(suite: DenseSuite, choices: Any, findings: Findings, say: Told) -> list[str]:
    """The names of all splits; adds what is not there."""
    every: list[str] = []
    splits = {"train": suite.train, "val": suite.val, "test": suite.test}
    for split, dataset in splits.items():
        if dataset is None:
            continue
        names = list(dataset.names)
        every += names
        if split not in suite.choices:  # where it says more
            findings.add("fact", split, f"{len(names)} images")
        if choices.missing == "drop":
            continue  # these are complete by how they were chosen
        for of in (IMAGE, *dataset.tasks):
            gone = [str(dataset.reader.place(name, of)) for name in names if not dataset.reader.has(name, of)]
            say(f"{split} {of}", len(names), len(names))
            if len(gone) == len(names):
                findings.add("error", of, f"none of the {len(names)} {split} images has one: choose other tasks.")
            elif gone:
                partial = choices.missing == "leave_out" and of != IMAGE
                remedy = "left out" if partial else "get them; --missing leave_out trains on images labelled in part"
                said = f"{len(gone)} of {len(names)} {split} images have none: {remedy}"
                findings.add("note" if partial else "error", of, said, gone)
    return every


def _report_maps(
    suite: DenseSuite, files: Mapping[str, MapStatistics], pixels: Mapping[str, MapStatistics], findings: Findings
) -> None:
    classes = {task.name: task.classes for task in suite.tasks}
    for of, own in files.items():
        said = [f"{own.files} files"]
        if own.sizes:
            said.append(size_words(own.sizes))
        if own.bits:
            said.append(" or ".join(f"{channels} x {bits} bits" for channels, bits in sorted(own.bits)))
        held = pixels.get(of)
        if held is not None and held.decoded:
            said.append(_values(held, classes.get(of, ())))
        findings.add("fact", of, ", ".join(said))


def _values(held: MapStatistics, classes: Sequence[str]) -> str:
    said = f"{held.decoded} decoded"
    if held.classes:
        known = sorted(number for number in held.classes if number != 255)
        said += f", classes {known[0]} to {known[-1]}" if known else ", no class known"
        unseen = [name for number, name in enumerate(classes) if number not in held.classes]
        said += f" ({len(unseen)} never: {', '.join(unseen[:5])})" if unseen else ""
    elif held.low <= held.high:
        said += f", from {held.low:.4g} to {held.high:.4g}"
    return said + (f", {100 * held.unknown / held.pixels:.2f} % unknown" if held.unknown else "")


def _report_broken(broken: Sequence[Broken], choices: Any, findings: Findings) -> None:
    """One finding for each map and kind of fault, with what is wrong with the first of the files."""
    groups: dict[tuple[str, str], list[Broken]] = {}
    for each in broken:
        groups.setdefault((each.of, each.fault), []).append(each)
    for (of, fault), own in groups.items():
        skipped = fault == "unreadable" and choices.unreadable == "skip"
        more = f" So are {len(own) - 1} more." if len(own) > 1 else ""
        said = f"{own[0].said}{more}{' They are skipped.' if skipped else ''}"
        findings.add("note" if skipped else "error", of, said, [each.path for each in own])


def _joined(one: Seen, two: Seen) -> Seen:
    joined = Seen()
    joined.merge(one)
    joined.merge(two)
    return joined
