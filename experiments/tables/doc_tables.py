"""Tables of the documentation, filled in from committed results, so that no figure in them can drift.

A page says where a table goes and what it is made of; whatever stands between the two comments is replaced:

    <!-- table results/nuclei-plateau.jsonl: ST; MT; TM+TE -->
    <!-- end of table -->

Without methods, the table has all rows; the results of `python -m experiments.studies.chance`, `.suffering` and of
`python -m experiments probe` have tables of their own.
Two methods are held against each other, seed by seed, by

    <!-- compare results/nuclei-plateau.jsonl: Adapt last block > MT 2x; TM+TE > TM+TE random, same cost -->
    <!-- end of table -->

in all seeds, or in those that `results/nuclei-plateau.jsonl seeds 3 4:` names. How far losses on images trained on and on others
are apart is

    <!-- overfitting results/scenes-few-100.jsonl: MT; TM+TE -->
    <!-- end of table -->

An ablation, suite beside suite, is

    <!-- ablation insert-rate -->
    <!-- end of table -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dtme._files import parse_json, read_text, write_text
from experiments.ablations import ablation_of
from experiments.runner.jsonl import read_lines, rows_of
from experiments.tables.ablation_table import ablation_table
from experiments.tables.comparison import against
from experiments.tables.overfitting import overfitting_table
from experiments.tables.table import markdown
from experiments.tables.text_table import markdown as text_markdown

_PLACE = re.compile(
    r"(<!-- table (?P<path>[^\s:]+)(: (?P<methods>[^>]*?))? -->\n).*?(<!-- end of table -->)", re.DOTALL
)
_PAIRS = re.compile(
    r"(<!-- compare (?P<path>[^\s:]+)( seeds (?P<seeds>[\d ]+))?: (?P<pairs>[^\n]*?) -->\n).*?(<!-- end of table -->)",
    re.DOTALL,
)
_OVERFITTING = re.compile(
    r"(<!-- overfitting (?P<path>[^\s:]+): (?P<methods>[^\n]*?) -->\n).*?(<!-- end of table -->)", re.DOTALL
)
_ABLATION = re.compile(r"(<!-- ablation (?P<name>[\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def filled(text: str, root: Path) -> str:
    """A page with its tables made anew.

    Args:
        text: The page.
        root: Folder that the paths of results are relative to.

    Raises:
        ValueError: A method that a table names is not in its results.
    """

    def table(found: re.Match[str]) -> str:
        methods = [name.strip() for name in found["methods"].split(";")] if found["methods"] else None
        return f"{found[1]}\n{table_of(root / found['path'], methods)}\n{found[5]}"

    def comparison(found: re.Match[str]) -> str:
        pairs = [tuple(name.strip() for name in pair.split(">")) for pair in found["pairs"].split(";")]
        seeds = None if found["seeds"] is None else [int(seed) for seed in found["seeds"].split()]
        return f"{found[1]}\n{comparison_of(root / found['path'], pairs, seeds)}\n{found[6]}"

    def ablation(found: re.Match[str]) -> str:
        return f"{found[1]}\n{ablation_table(ablation_of(found['name']), root / 'results/ablations')}\n{found[3]}"

    def overfitting(found: re.Match[str]) -> str:
        methods = [name.strip() for name in found["methods"].split(";")]
        return f"{found[1]}\n{overfitting_table(read_lines(root / found['path']), methods)}\n{found[4]}"

    text = _OVERFITTING.sub(overfitting, text)
    return _ABLATION.sub(ablation, _PAIRS.sub(comparison, _PLACE.sub(table, text)))


def table_of(path: Path, methods: Sequence[str] | None = None) -> str:
    """The table of a file of results as Markdown: of a dense suite or of text tasks, all rows or some; of scores of blocks.

    Raises:
        ValueError: A method is not in the results, or the file holds no results.
    """
    runs = [parse_json(read_text(path), str(path))] if path.suffix == ".json" else read_lines(path)
    try:
        return _table_of(runs, path, methods)
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, ValueError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(
            f"{path} lacks what the table shows ({error!r}): is it a file of results, and whole?"
        ) from error


def _table_of(runs: list[dict[str, Any]], path: Path, methods: Sequence[str] | None) -> str:
    if "scores" in runs[0]:
        return _rates_and_chance(runs[0]["scores"])
    if "correlations" in runs[0]:
        return _correlations(runs[0]["correlations"])
    if "by_task" in runs[0]:
        return _tasks_beside_rates(runs[0]["by_task"])
    rows = [row for run in runs for row in run["rows"]]
    unknown = [name for name in methods or () if name not in {row["method"] for row in rows}]
    if unknown:
        known = ", ".join(dict.fromkeys(row["method"] for row in rows))
        raise ValueError(f"{path} has no row {unknown[0]!r}; it has {known}.")
    return text_markdown(runs, methods) if _are_text(runs) else markdown(runs, methods)


def _rates_and_chance(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Mean scores in either space, each beside what chance gives."""
    lines = ["| | | range space | chance | null space | chance |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    names = ("range_score", "range_chance_score", "null_score", "null_chance_score")
    for suite, states in scores.items():
        lines += [
            f"| {suite} | {state} | {' | '.join(f'{own[name]:.3f}' for name in names)} |"
            for state, own in states.items()
        ]
    return "\n".join(lines) + "\n"


def _tasks_beside_rates(found: Mapping[str, Mapping[str, float]]) -> str:
    """What became of each task, beside what the analysis said of it before."""
    lines = ["| | MT against ST, % | mean rate of conflict | size of gradients |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {task} | {own['gain']:+.1f} | {own['rate']:.3f} | {own['size']:.2f} |" for task, own in found.items()]
    return "\n".join(lines) + "\n"


def _correlations(found: Mapping[str, Mapping[str, float]]) -> str:
    """How each score of the blocks goes with what an insert gains there."""
    lines = [f"| | {' | '.join(found)} |", "| --- |" + " ---: |" * len(found)]
    lines += [
        f"| {score} | {' | '.join(f'{own[score]:+.2f}' for own in found.values())} |"
        for score in next(iter(found.values()))
    ]
    return "\n".join(lines) + "\n"


def comparison_of(path: Path, pairs: Sequence[tuple[str, ...]], seeds: Sequence[int] | None = None) -> str:
    """Differences between pairs of methods, paired by seed, as Markdown: in Delta_m, or of text tasks in the mean score.

    Raises:
        ValueError: A pair is none, or a method is not in the results.
    """
    runs = [run for run in read_lines(path) if seeds is None or run["seed"] in seeds]
    figure, called = ("mean", "mean score") if _are_text(runs) else ("delta_m", "Δm")
    lines = [f"| | {called}, difference | p | wall-clock |", "| --- | ---: | ---: | ---: |"]
    for pair in pairs:
        if len(pair) != 2 or not all(rows_of(runs, name) for name in pair):
            raise ValueError(f"{path}: cannot compare {' > '.join(pair)!r}: name two of its methods, 'one > other'.")
        clocks = (fmean(row["wall_clock_ratio"] for row in rows_of(runs, name).values()) for name in pair)
        price = " against ".join(f"{clock:.2f} x" for clock in clocks)
        difference, p = against(runs, *pair, figure)
        lines.append(f"| {pair[0]} against {pair[1]} | {difference} | {p} | {price} |")
    return "\n".join(lines) + "\n"


def _are_text(runs: Sequence[Mapping[str, Any]]) -> bool:
    return any("measures" in row for run in runs for row in run["rows"])


def fill(page: Path, root: Path) -> bool:
    """Make the tables of a page anew; whether anything changed."""
    before = page.read_text(encoding="utf-8")
    after = filled(before, root)
    if after != before:
        write_text(page, after)
    return after != before
