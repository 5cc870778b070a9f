"""How far rates of conflict are from chance: models at their plateau, and as they were drawn.

    python -m experiments.studies.chance --data dsb2018_nuclei.tar

writes results/chance.json: per suite and state the scores, means over the blocks and seeds, beside their chance, and each
task's share of the energy of all tasks' gradients at the tokens, at the loss weights in common use. What the
plateaus of `python -m experiments bench` left in the cache is used; where there is none, each takes some minutes to train.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from importlib.metadata import version
from json import dumps
from pathlib import Path

import torch
import tyro

from dtme._files import write_text
from dtme.report.report import ConflictReport
from experiments.dense.branch_point import analyse
from experiments.dense.experiment import Bench
from experiments.dense.model import build
from experiments.dense.pretraining import start_of
from experiments.dense.recipe import PLATEAU
from experiments.runner.environment import hardware

STATES = ("at the plateau", "as drawn")


def main(data: Path, seeds: tuple[int, ...] = (0, 1, 2, 3, 4), out: Path = Path("results/chance.json")) -> None:
    """Analyse models of both suites, trained and untrained.

    Args:
        data: Archive of the suite nuclei.
        seeds: As for `python -m experiments bench`.
        out: File of the results.
    """
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[str, float]]] = {}
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for suite in ("scenes", "nuclei"):
        reports: dict[str, list[ConflictReport]] = {state: [] for state in STATES}
        for seed in seeds:
            bench = Bench(suite, PLATEAU, Path("runs") / f"{suite}-plateau" / f"seed-{seed}", data, seed)
            made = bench.load()
            for state in STATES:
                start = start_of(bench, lambda done, total: None) if state == "at the plateau" else None
                reports[state].append(analyse(build(made.tasks, PLATEAU, seed, start), bench, made))
        found[suite] = {state: _scores(own) for state, own in reports.items()}
        shares[suite] = {state: _shares(own) for state, own in reports.items()}
    shared = {
        "command": shlex.join(["python", "-m", "experiments.studies.chance", "--data", data.name]),
        "versions": {name: version(name) for name in ("dtme", "torch", "timm")},
        "hardware": hardware(),
        "seeds": list(seeds),
    }
    write_text(out, dumps({**shared, "scores": found, "gradient_energy": shares}, indent=1) + "\n")
    print(out.read_text(encoding="utf-8"))


def _scores(reports: list[ConflictReport]) -> dict[str, float]:
    def mean(name: str) -> float:
        return statistics.fmean(float(getattr(report, name)().mean()) for report in reports)

    return {
        name: round(mean(name), 4) for name in ("range_score", "range_chance_score", "null_score", "null_chance_score")
    }


def _shares(reports: list[ConflictReport]) -> dict[str, float]:
    of_seeds = []
    for report in reports:
        assert report.gradient_size is not None
        energy = report.gradient_size.square()
        of_seeds.append((energy / energy.sum(1, keepdim=True)).mean(0))
    return {
        task: round(float(share), 3)
        for task, share in zip(reports[0].tasks, torch.stack(of_seeds).mean(0), strict=True)
    }


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
