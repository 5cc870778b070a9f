"""From finished rows to what people read: results.json, the table, the report page."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dtme._files import read_json, read_text, write_json
from dtme.metrics import delta_m, relative_gain
from dtme.report.report import ConflictReport
from experiments.dense.branch_point import price_of_analysis
from experiments.dense.experiment import Bench
from experiments.dense.model import build
from experiments.dense.recipe import FEW
from experiments.dense.suite import Suite
from experiments.dense.training import predict
from experiments.runner.environment import hardware, versions
from experiments.runs.by_name import method_of
from experiments.runs.rows import plan_of_method, trained
from experiments.runs.total_cost import analyses_of, analysis_paid, paid

if TYPE_CHECKING:
    from experiments.figures.samples import Kind

FORMAT = "dtme.results"
ELSEWHERE = (
    "This is one seed, of few images and many epochs. At a plateau, with many images and over five seeds, the paper's plan gains "
    "0.1 to 0.2 points over MT, and even weights alone gain more; on GLUE's texts nothing is ahead of more training."
)
"""What a reader of the demo has to know of other regimes."""


def collect(bench: Bench, methods: Sequence[str], *, command: str, seconds: float) -> dict[str, Any]:
    """All figures of one seed of a benchmark run, written to `results.json` in its folder as well.

    Args:
        bench: Whose rows have been finished.
        methods: The table's rows; ST and MT, which the others are held against, are always among them.
        command: What was typed.
        seconds: How long it took.
    """
    suite = bench.load()
    tasks = [
        {"name": task.name, "metric": task.metric_name, "higher_is_better": bool(task.metric().higher_is_better)}
        for task in suite.tasks
    ]
    higher = {task["name"]: task["higher_is_better"] for task in tasks}
    prices = bench.read_row("cost")
    single = {task.name: bench.read_row(f"ST {task.name}") for task in suite.tasks}
    reference = {task: row["metrics"][task] for task, row in single.items()}
    curves = {"ST": {task: row["curves"][task] for task, row in single.items()}}
    first = bench.read_row("MT, first steps")
    rows = []
    for method in methods:
        if method == "ST":
            metrics, spent = reference, sum(row["seconds"] for row in single.values())
            row = next(iter(single.values()))
            steps, watched = bench.recipe.steps, {name: row[name] for name in ("made_with", "skipped") if name in row}
            if "looks" in row:
                watched["looks"] = together(list(single.values()))
        else:
            row = bench.read_row(method)
            metrics, spent, steps = row["metrics"], row["seconds"], row["steps"]
            curves[method] = row["curves"]
            watched = {
                name: row[name] for name in ("conflict", "cosines", "looks", "made_with", "skipped") if name in row
            }
        plan, known = plan_of_method(bench, method), method_of(method)
        if "conflict" in watched:
            watched["conflict_before"] = _scores(known.branch.measured(bench))
        spent += sum(price_of_analysis(bench, point)[0] for point in analyses_of(known))
        added, cost = prices["added"][method], prices["costs"][method]
        rows.append(
            {
                "method": method,
                "metrics": metrics,
                "delta_m": delta_m(metrics, reference, higher),
                "gains": relative_gain(metrics, reference, higher),
                "parameters_added": added,
                "parameters_added_percent": 100 * added / _parameters(bench, suite),
                "steps": steps,
                "step_cost": cost["step"],
                "inference_cost": cost["inference"],
                "step_flops": cost["step_flops"],
                "inference_flops": cost["inference_flops"],
                "streams_part_at": None if plan is None else next(iter(_in_order(bench, plan.blocks)), None),
                "wall_clock": spent,
                "wall_clock_ratio": paid(bench, known, steps, "time") / bench.recipe.steps,
                "flops_ratio": paid(bench, known, steps, "FLOPs") / bench.recipe.steps,
                "analysis_share": analysis_paid(bench, known, "time") / bench.recipe.steps,
                **watched,
            }
        )
    results = {
        "format": FORMAT,
        "version": 1,
        "suite": bench.suite,
        "command": command,
        "versions": versions(),
        "hardware": hardware(),
        "settings": bench.settings(),
        **({"choices": bench.choices} if bench.choices else {}),
        "notes": _notes(bench, suite, first),
        "tasks": tasks,
        "rows": rows,
        "curves": curves,
        "seconds": seconds,
    }
    write_json(bench.out / "results.json", results, indent=1)
    return results


def together(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was measured on the way of single-task models, as if it had been one model of all tasks.

    >>> together([{"looks": [{"step": 1, "metrics": {"a": 0.5}}]}, {"looks": [{"step": 1, "metrics": {"b": 2.0}}]}])
    [{'step': 1, 'metrics': {'a': 0.5, 'b': 2.0}}]
    """
    merged = []
    for looks in zip(*(row["looks"] for row in rows), strict=True):
        named = {name: [look[name] for look in looks] for name in looks[0]}
        merged.append(
            {name: dict(ChainMap(*own[::-1])) if isinstance(own[0], dict) else own[0] for name, own in named.items()}
        )
    return merged


def _scores(report: ConflictReport) -> dict[str, float]:
    """Mean score over the blocks in either space."""
    return {"range": float(report.range_score().mean()), "null": float(report.null_score().mean())}


def seconds_before(bench: Bench) -> float:
    """How long the run took whose finished rows are used again; 0 if its results are gone."""
    try:
        path = bench.out / "results.json"
        return float(read_json(read_text(path), FORMAT, str(path))["seconds"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0.0


def write_report(bench: Bench, results: Mapping[str, Any], methods: Sequence[str], images: int = 4) -> Path:
    """The report page of a benchmark run, one file.

    Args:
        bench: Whose rows have been finished.
        results: As `collect` gave them.
        methods: As given to `collect`; beside MT, the headline's is shown, or, where it names none, the one that gains most.
        images: How many test images are shown with their predictions.
    """
    from experiments.figures.samples import Samples
    from experiments.page.curves_shown import drawn_methods
    from experiments.page.page import write_page

    suite = bench.load()
    shown = drawn_methods(results, (method for method in methods if method != "ST"), most=2)
    # From the middle of the test split: benchmarks often begin with their easiest or smallest images.
    rows = slice(len(suite.test) // 2, len(suite.test) // 2 + images)
    batch = suite.test.batch(rows)["image"]
    found = {
        method: {
            task.name: _as_target(outputs[task.name], task.kind)
            for outputs in [predict(trained(bench, method), batch)]
            for task in suite.tasks
        }
        for method in shown
    }
    pictures, targets = suite.test.pictures(rows)
    samples = Samples(
        images=pictures,
        targets={task.name: _first(targets[task.name], task.kind) for task in suite.tasks},
        predictions=found,
        kinds={task.name: task.kind for task in suite.tasks},
    )
    plan = plan_of_method(bench, shown[-1])
    path = bench.out / "report.html"
    write_page(path, results, ConflictReport.load(bench.out / "report.json"), plan, samples)
    return path


def _as_target(prediction: Tensor, kind: Kind) -> Tensor:
    """A prediction in the form of its target: classes for logits, probabilities for logits of edges."""
    if kind == "labels":
        return prediction.argmax(1)
    return prediction.sigmoid() if kind == "edges" else _first(prediction, kind)


def _first(values: Tensor, kind: Kind) -> Tensor:
    """What is drawn: of several numbers a pixel that are no direction, the first."""
    return values[:, :1] if kind == "signed" and values.ndim == 4 else values


def _parameters(bench: Bench, suite: Suite) -> int:
    return sum(p.numel() for p in build(suite.tasks, bench.recipe, bench.seed).parameters())


def _in_order(bench: Bench, places: Sequence[str]) -> list[str]:
    """The blocks that some places are, or lie in, in the order in which they run."""
    order = ConflictReport.load(bench.out / "report.json").blocks
    return [block for block in order if any(f"{place}.".startswith(f"{block}.") for place in places)]


def _notes(bench: Bench, suite: Suite, first: Mapping[str, Any]) -> list[str]:
    recipe = bench.recipe
    if recipe.start == "weights":
        begins = "Every row begins with the trunk's weights as they come, and with heads that nothing has trained."
    elif recipe.start == "plateau":
        begins = (
            f"Every row of a seed begins with one model trained for {recipe.pretrain_steps} steps on all tasks together, with "
            f"the {len(suite.train)} images that the rows train on."
        )
    else:
        begins = (
            f"Every row starts from one trunk, trained for {recipe.pretrain_steps} steps on all tasks together with "
            f"{len(suite.pretrain)} other images of the same kind; heads start anew."
        )
    branches = f" Expanded rows branch off MT at step {recipe.expand_at}." if recipe.expand_at else ""
    return [
        begins,
        f"Rows train for {recipe.steps} steps of {recipe.batch} images, {recipe.steps * recipe.batch / len(suite.train):.0f} "
        f"epochs of {len(suite.train)} in all, paired: the same first weights and the same batches.{branches}",
        *([ELSEWHERE] if recipe == FEW else []),
        f"Measured on {len(suite.test)} test images; within one seed, differences of a few tenths of Delta_m are noise.",
        f"The analysis read {recipe.analysis_batches} batches twice and took {first['analysis_seconds']:.1f} s, as long as "
        f"{first['analysis_steps']:.0f} training steps; its time is in the wall-clock of the rows that need it.",
        "Step and inference cost: median ratio to MT over turns taken one after another. Wall-clock: steps times their "
        "cost, with the analysis; FLOPs likewise.",
    ]
