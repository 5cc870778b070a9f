"""Early stopping, drawn again and again: how many samples `confidence=0.95` takes, and whether it picks what all data pick.

    python -m experiments.studies.stopping scenes
    python -m experiments.studies.stopping nuclei --data dsb2018_nuclei.tar

A small vision transformer learns the suite's tasks for a few hundred steps. The conflicts of every training sample are
counted once, in the token spaces of all samples and in those of some draws of as few as an early stop uses. Then each draw
takes the samples in an order of its own, batch by batch, until the analysis says that the choice of blocks is settled, and its
default plan is held against that of all samples. A plan is within the tolerance where no block it leaves out beats one it
takes by more than `TIE`, by the scores of all samples. Where all scores of a space lie within TIE of each other
no choice is wrong, so that such a space tells nothing about errors. Writes results/stopping.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dtme
from dtme.measure.accumulator import Accumulator, BatchCounts
from dtme.measure.batches import MOMENT_SAMPLES
from dtme.measure.capture import capture
from dtme.measure.conflict import Conflicts
from dtme.measure.gradients import compute_token_gradients
from dtme.measure.stopping import TIE
from dtme.measure.token_space import TokenSpace, second_moment, token_space
from dtme.report.report import ConflictReport
from dtme.trunk.blocks import find_blocks
from experiments.dense.experiment import Bench
from experiments.dense.model import build
from experiments.dense.recipe import PLATEAU
from experiments.dense.suite import Split, Suite
from experiments.dense.training import begin, task_losses
from experiments.runner.environment import hardware
from experiments.training.run import train

RESULT = Path(__file__).parents[2] / "results/stopping.json"
LEVEL, RATIO = 0.95, 100.0
BATCH = 16


def trained(suite: Suite, steps: int) -> torch.nn.Module:
    """A small multi-task model after some steps of plain training."""
    recipe = replace(PLATEAU, warmup=steps // 10)
    model = build(suite.tasks, recipe, seed=0)
    train(begin(model, suite.tasks, suite.train, recipe, seed=0, steps=steps))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def moments(model: torch.nn.Module, split: Split, rows: Tensor) -> dict[str, Tensor]:
    """The second moment of the tokens that enter each block, over some rows."""
    sums: dict[str, Tensor] = {}
    with torch.no_grad(), capture(find_blocks(model), differentiable=False) as caught:
        for chosen in rows.split(64):
            caught.clear()
            model(split.batch(chosen)["image"])
            for name, entry in caught.entries.items():
                sums[name] = sums.get(name, 0.0) + second_moment(entry.tokens)
    return sums


def conflicts(
    model: torch.nn.Module, suite: Suite, spaces: list[dict[str, TokenSpace]], report: Any
) -> list[tuple[Accumulator, BatchCounts]]:
    """What every training sample says, in each of some token spaces: one pass over the split."""
    tasks, blocks = tuple(task.name for task in suite.tasks), find_blocks(model)
    measured = [Accumulator(tasks, tuple(blocks), own, LEVEL) for own in spaces]
    found: list[list[BatchCounts]] = [[] for _ in spaces]
    with capture(blocks, differentiable=True) as caught:
        for number, chosen in enumerate(torch.arange(len(suite.train)).split(64)):
            caught.clear()
            losses = task_losses(model, _held(suite).batch(chosen), suite.tasks)
            gradients = list(compute_token_gradients(losses, caught, number))
            for own, kept in zip(measured, found, strict=True):
                kept.append(own.find(gradients, caught))
            report(f"samples {min((number + 1) * 64, len(suite.train))} of {len(suite.train)}")
    return [(own, _joined(kept)) for own, kept in zip(measured, found, strict=True)]


def _joined(found: list[BatchCounts]) -> BatchCounts:
    first = found[0]
    return BatchCounts(
        samples=sum(own.samples for own in found),
        counts=torch.cat([own.counts for own in found], 1),
        present=first.present,
        conflicts={name: _put_together([own.conflicts[name] for own in found]) for name in first.conflicts},
        chance={name: _put_together([own.chance[name] for own in found]) for name in first.chance},
        valid={name: torch.cat([own.valid[name] for own in found]) for name in first.valid},
        energy={name: torch.stack([own.energy[name] for own in found]).sum(0) for name in first.energy},
        sums={},
    )


def _put_together(found: list[Conflicts]) -> Conflicts:
    return Conflicts(*(torch.cat([getattr(own, field) for own in found]) for field in Conflicts.__annotations__))


def _rows(found: BatchCounts, rows: Tensor) -> BatchCounts:
    """What some of the samples say; of the gradients' sizes, on which no plan depends, their share."""

    def chosen(counts: dict[str, Conflicts]) -> dict[str, Conflicts]:
        fields = Conflicts.__annotations__
        return {name: Conflicts(*(getattr(own, field)[rows] for field in fields)) for name, own in counts.items()}

    return BatchCounts(
        samples=len(rows),
        counts=found.counts[:, rows],
        present=found.present,
        conflicts=chosen(found.conflicts),
        chance=chosen(found.chance),
        valid={name: tokens[rows] for name, tokens in found.valid.items()},
        energy={name: sizes * (len(rows) / found.samples) for name, sizes in found.energy.items()},
        sums={},
    )


def drawn(model: torch.nn.Module, like: Accumulator, found: BatchCounts, order: Tensor) -> tuple[ConflictReport, bool]:
    """An analysis that takes the samples in an order, until it is settled or they end; and whether it was settled."""
    measured = Accumulator(like.tasks, like.blocks, like.spaces, LEVEL)
    for rows in order.split(BATCH):
        batch = _rows(found, rows)
        measured.count(batch.samples, batch.counts)
        measured.add(batch)
        if measured.settled():
            break
    width = next(iter(like.spaces.values())).basis.shape[0]
    return measured.report(dict.fromkeys(like.blocks, width), RATIO), measured.settled()


def within(report: ConflictReport, whole: ConflictReport, tolerance: float) -> bool:
    """Whether no block that the default plan leaves out beats one it takes by more than a tolerance, by all samples."""
    plan = report.plan()
    for chosen, scores in ((plan.modulate, whole.range_score()), (plan.expand, whole.null_score())):
        taken = torch.tensor([name in chosen for name in whole.blocks])
        if float(scores[~taken].max() - scores[taken].min()) > tolerance:
            return False
    return True


def _held(suite: Suite) -> Split:
    """The images to train on, which a suite that is rendered holds in memory."""
    assert isinstance(suite.train, Split)
    return suite.train


def analysed(model: torch.nn.Module, suite: Suite) -> int:
    """How many samples `analyze` itself takes, to hold the draws against."""
    order = torch.randperm(len(suite.train), generator=torch.Generator().manual_seed(1000))
    batches = [_held(suite).batch(rows) for rows in order.split(BATCH)]
    return dtme.analyze(model, partial(task_losses, tasks=suite.tasks), batches, confidence=LEVEL).samples


def measure(suite: Suite, steps: int, draws: int, spaces: int, report: Any) -> dict[str, Any]:
    """The figures of one suite."""
    torch.manual_seed(0)
    report("training")
    model = trained(suite, steps)
    count = len(suite.train)
    few = [
        torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:MOMENT_SAMPLES] for seed in range(spaces)
    ]
    own_spaces = [
        {name: token_space(moment, RATIO) for name, moment in moments(model, _held(suite), rows).items()}
        for rows in (torch.arange(count), *few)
    ]
    (like, found), *early = conflicts(model, suite, own_spaces, report)
    like.count(found.samples, found.counts)
    like.add(found)
    whole = like.report(dict.fromkeys(like.blocks, PLATEAU.width), RATIO)
    taken, same, tolerated, settled = [], 0, 0, 0
    for draw in range(draws):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 + draw))
        early_report, was_settled = drawn(model, *early[draw % spaces], order)
        plan, wanted = early_report.plan(), whole.plan()
        taken.append(early_report.samples)
        same += plan.modulate.keys() == wanted.modulate.keys() and plan.expand.keys() == wanted.expand.keys()
        tolerated += within(early_report, whole, TIE)
        settled += was_settled
    return {
        "training_samples": count,
        "training_steps": steps,
        "draws": draws,
        "samples_median": statistics.median(taken),
        "samples_most": max(taken),
        "samples_of_one_analysis": analysed(model, suite),
        "share_median": statistics.median(taken) / count,
        "share_most": max(taken) / count,
        "settled": settled / draws,
        "same_choice": same / draws,
        "same_or_within_tolerance": tolerated / draws,
        "tolerance": TIE,
        "range_score": [round(float(score), 4) for score in whole.range_score()],
        "null_score": [round(float(score), 4) for score in whole.null_score()],
        "deviation": [[round(float(v), 4) for v in scores.covariance().diagonal().sqrt()] for scores in like.scores],
    }


def main() -> None:
    """Measure one suite, print, and write the result beside those of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("scenes", "nuclei"))
    parser.add_argument("--data", type=Path, help="dsb2018_nuclei.tar, for nuclei")
    parser.add_argument(
        "--steps", type=int, default=400, help="training steps before the analysis (default: %(default)s)"
    )
    parser.add_argument("--draws", type=int, default=200, help="repetitions (default: %(default)s)")
    parser.add_argument(
        "--spaces", type=int, default=4, help="draws of few samples for the token space (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULT, help="where the result goes (default: results/stopping.json)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    suite = Bench(options.suite, PLATEAU, Path("runs"), options.data).load()
    shown = partial(print, end="\r", flush=True)
    found = measure(suite, options.steps, options.draws, options.spaces, shown)
    print(json.dumps(found, indent=2))
    whole = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    whole[options.suite] = {
        **found,
        "hardware": hardware(),
        "versions": {"torch": torch.__version__, "dtme": dtme.__version__},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
