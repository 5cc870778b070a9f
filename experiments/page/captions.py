"""What the figures show, in words, for those who do not see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dtme.plan.budget import Step
from dtme.plan.plan import Plan
from dtme.plan.stream_layout import groups_per_block
from dtme.report.report import ConflictReport
from experiments.figures.samples import Samples


def of_conflict_maps(report: ConflictReport) -> str:
    """Size, span of the scores, and where they are highest."""
    sentences = [
        f"Two heat maps of conflict rates, {_count(len(report.blocks), 'block')} by "
        f"{_count(len(report.tasks) * (len(report.tasks) - 1) // 2, 'pair')} of tasks."
    ]
    for space, score in (("range", report.range_score()), ("null", report.null_score())):
        sentences.append(
            f"In the {space} space the scores of the blocks lie between {float(score.min()):.3f} and "
            f"{float(score.max()):.3f}, highest in {report.blocks[int(score.argmax())]}."
        )
    return " ".join(sentences)


def of_plan_map(plan: Plan, blocks: tuple[str, ...]) -> str:
    """Where streams part, and which blocks get what."""
    parted = [block for block, groups in zip(blocks, groups_per_block(plan, blocks), strict=True) if len(groups) > 1]
    sentences = [f"The trunk of {_count(len(blocks), 'block')} and its {_count(len(plan.tasks), 'task')}."]
    sentences.append(f"Streams part at {parted[0]}." if parted else "Streams never part.")
    for what, placement in (
        ("Modulators", plan.modulate),
        ("Task tokens", plan.expand),
        ("Low-rank updates", plan.adapt),
        ("Copies", plan.copies),
    ):
        if placement:
            sentences.append(f"{what} in {', '.join(placement)}.")
    return " ".join(sentences)


def of_cost_steps(steps: Sequence[Step]) -> str:
    """The cheapest plan, what half of the conflict costs, and all of it."""
    most = steps[-1].resolved
    half = next(step for step in steps if step.resolved >= most / 2)
    return (
        f"A staircase of {_count(len(steps), 'plan')}, conflict resolved against the cost of inference. The cheapest costs "
        f"{steps[0].cost:.2f} times the plain model and resolves {steps[0].resolved / most:.0%}; half costs {half.cost:.2f}, all "
        f"{steps[-1].cost:.2f}. Below it the streams that each plan gives each block."
    )


def of_training_curves(curves: Mapping[str, Mapping[str, Any]], left_out: int) -> str:
    """What is drawn over what, what is not, and the last loss of every curve."""
    ends = [
        f"{method} {task} {points[-1][1]:.4g}" for method, of_task in curves.items() for task, points in of_task.items()
    ]
    sentences = ["Training losses over steps, one panel per task, one line per method.", of_left_out(left_out)]
    return " ".join(filter(None, [*sentences, f"Last losses: {', '.join(ends)}."]))


def of_left_out(count: int) -> str:
    """Which methods are drawn where not all are; nothing where all are."""
    if not count:
        return ""
    return (
        "Drawn are ST, MT, the method of the headline, if it names one, and those of highest Δm; "
        f"{_count(count, 'further method')} {'is' if count == 1 else 'are'} in the table."
    )


def of_samples(samples: Samples) -> str:
    """What stands beside what."""
    return (
        f"{_count(len(samples), 'test image')}, each with the truth and the predictions of {', '.join(samples.predictions)} "
        f"for {', '.join(samples.kinds)}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
