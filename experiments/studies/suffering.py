"""Does the analysis tell which tasks suffer from being trained together? And is there more to choose by in a deep trunk?

    python -m experiments.studies.suffering runs/scenes-few-100 --out results/scenes-few-100-conflicts.json

reads what `python -m experiments bench` left in a folder, the reports of all seeds and the rows ST and MT, and writes per task
what plain multi-task training gains over a model of its own, beside what the analysis said before training: the mean rate of
conflict with the other tasks, and the size of the task's gradients. Rates of all blocks stand beside their chance, and so does
for how many blocks the choice was settled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import tyro
from tyro.conf import Positional

from dtme._files import write_text
from dtme.report.report import ConflictReport
from experiments.runner.jsonl import read_lines, rows_of


def main(folder: Annotated[Path, Positional], out: Path) -> None:
    """Set what happened to each task beside what the analysis said of it.

    Args:
        folder: Of a bench, with results.jsonl and a folder per seed.
        out: File of the results.
    """
    runs = read_lines(folder / "results.jsonl")
    reports = [ConflictReport.load(folder / f"seed-{run['seed']}" / "report.json") for run in runs]
    gains = {run["seed"]: row["gains"] for run, row in zip(runs, rows_of(runs, "MT").values(), strict=True)}
    found = {
        "seeds": list(gains),
        "by_task": {task: of_task(task, list(gains.values()), reports) for task in reports[0].tasks},
        "by_block": {block: of_block(place, reports) for place, block in enumerate(reports[0].blocks)},
        "undecided": [list(report.undecided) for report in reports],
    }
    write_text(out, dumps(found, indent=1) + "\n")
    print(out.read_text(encoding="utf-8"))


def of_task(task: str, gains: Sequence[dict[str, float]], reports: Sequence[ConflictReport]) -> dict[str, float]:
    """What MT gains over ST in per cent, the mean rate with the other tasks in the range space, and the gradients' size.

    Sizes are as multiples of their geometric mean over tasks.
    """
    place = reports[0].tasks.index(task)
    others = [other for other in range(len(reports[0].tasks)) if other != place]
    sizes = [report.gradient_size.log() for report in reports if report.gradient_size is not None]
    return {
        "gain": round(fmean(gain[task] for gain in gains), 2),
        "rate": round(fmean(float(report.range_rate[:, place, others].mean()) for report in reports), 3),
        "size": round(fmean(float((size[:, place].mean() - size.mean()).exp()) for size in sizes), 2),
    }


def of_block(place: int, reports: Sequence[ConflictReport]) -> dict[str, float]:
    """Scores of a block in either space, each beside its chance, means over seeds."""
    scored = {
        name: [getattr(report, name)()[place] for report in reports]
        for name in ("range_score", "range_chance_score", "null_score", "null_chance_score")
    }
    return {name: round(float(torch.stack(own).mean()), 3) for name, own in scored.items()}


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
