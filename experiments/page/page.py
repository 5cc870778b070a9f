"""The report page: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from dtme._files import write_text
from dtme.plan.budget import find_steps
from dtme.plan.placement import Inserts
from dtme.plan.plan import Plan
from dtme.report.report import ConflictReport
from dtme.report.table import describe_sizes
from dtme.viz.conflict_maps import conflict_maps
from dtme.viz.cost_steps import cost_steps
from dtme.viz.plan_map import plan_map
from experiments.figures.sample_predictions import sample_predictions
from experiments.figures.samples import Samples
from experiments.figures.training_curves import training_curves
from experiments.page import captions
from experiments.page.curves_shown import drawn_methods
from experiments.page.svg import inline_svg
from experiments.page.verdict import dtme_row, outcome, row_of

NONE = "–"
_MOST_CURVES = 6


def write_page(
    path: str | Path,
    results: Mapping[str, Any],
    report: ConflictReport | None,
    plan: Plan | None,
    samples: Samples | None,
) -> None:
    """Write what was measured as one HTML file: no request leaves it, no script runs in it, it prints.

    Args:
        path: The file; it is written whole or not at all.
        results: The results of a benchmark, format `dtme.results`, as plain data.
        report: The conflict analysis, if one was made.
        plan: The plan that was applied, if there is one; it may be empty.
        samples: Test images with predictions, if there are any.

    Raises:
        ValueError: `results` are of another format or lack a part, or the plan does not fit the report.
    """
    _check(results)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        number=number, signed=signed, times=times, count=count, duration=duration, percent=percent, setting=setting
    )
    folder = files("experiments.page")
    template = environment.from_string(folder.joinpath("page.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        css=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        results=results,
        outcome=outcome(results).replace(" %", "\N{NO-BREAK SPACE}%"),
        plain=row_of(results, "MT"),
        ours=dtme_row(results),
        best={task["name"]: _best(results, task) for task in results["tasks"]},
        figures=_figures(results, report, plan, samples),
        report=report,
        scores=_scores(report),
        sizes=describe_sizes(report) if report is not None else (),
        plan=plan,
        one_seed=_one_seed(results.get("settings", {})),
    )
    write_text(Path(path), page)


def _check(results: Mapping[str, Any]) -> None:
    found = results.get("format"), results.get("version")
    if found != ("dtme.results", 1):
        raise ValueError(f"results has format {found[0]!r} and version {found[1]!r}, expected 'dtme.results' and 1.")
    missing = [name for name in ("suite", "tasks", "rows") if name not in results]
    for place, row in enumerate(results.get("rows", [])):
        missing += [f"rows[{place}].{name}" for name in ("method", "metrics") if name not in row]
    if missing:
        raise ValueError(f"results lacks {', '.join(missing)}: give all of dtme.results, version 1.")


def _one_seed(settings: Mapping[str, Any]) -> bool:
    seeds = settings.get("seeds", settings.get("seed", []))
    return isinstance(seeds, int) or len(seeds) == 1


def _best(results: Mapping[str, Any], task: Mapping[str, Any]) -> float | None:
    values = [row["metrics"][task["name"]] for row in results["rows"] if task["name"] in row["metrics"]]
    return (max if task["higher_is_better"] else min)(values, default=None)


def _figures(
    results: Mapping[str, Any], report: ConflictReport | None, plan: Plan | None, samples: Samples | None
) -> dict[str, dict[str, Any]]:
    """Per section of the page its figure and what it shows in words; sections without data have none."""
    made = {}
    if report is not None:
        made["conflicts"] = _figure("conflicts", conflict_maps(report), captions.of_conflict_maps(report))
    blocks = report.blocks if report is not None else plan.blocks if plan is not None else ()
    if plan is not None and blocks:
        made["plan"] = _figure("plan", plan_map(plan, blocks), captions.of_plan_map(plan, blocks))
    if report is not None and not isinstance(report.flops, str):
        counted = [report.flops.blocks.get(block) for block in report.blocks]
        expansion = all(block is not None and block.task_tokens is not None for block in counted)
        steps = find_steps(report, Inserts(expansion=expansion)) if all(counted) else []
        if steps:
            figure = cost_steps(report, steps, report.plan(expansion=expansion))
            made["costs"] = _figure("costs", figure, captions.of_cost_steps(steps))
    curves = {method: of_task for method, of_task in results.get("curves", {}).items() if any(of_task.values())}
    if curves:
        drawn = {method: curves[method] for method in drawn_methods(results, curves, _MOST_CURVES)}
        left_out = len(curves) - len(drawn)
        words = captions.of_training_curves(drawn, left_out)
        made["curves"] = _figure("curves", training_curves(drawn), words)
        made["curves"]["left_out"] = captions.of_left_out(left_out)
    if samples is not None:
        made["samples"] = _figure("samples", sample_predictions(samples), captions.of_samples(samples))
    return made


def _figure(name: str, figure: Figure, words: str) -> dict[str, Any]:
    width = figure.get_size_inches()[0]
    return {"svg": Markup(inline_svg(figure, name)), "width": f"{width:.2f}", "words": words}


def _scores(report: ConflictReport | None) -> list[dict[str, Any]]:
    if report is None:
        return []
    return [
        {"block": block, "rank": rank, "width": width, "range": float(in_range), "null": float(in_null)}
        for block, rank, width, in_range, in_null in zip(
            report.blocks, report.range_rank, report.widths, report.range_score(), report.null_score(), strict=True
        )
    ]


def number(value: float | None) -> str:
    """A metric: two decimals from 10 on, three below.

    Example:
        >>> number(41.234), number(0.5), number(-0.25), number(None)
        ('41.23', '0.500', '−0.250', '–')
    """
    if value is None:
        return NONE
    return f"{value:.{2 if abs(value) >= 10 else 3}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A percentage that may point either way.

    Example:
        >>> signed(2.5), signed(-0.751), signed(0.001)
        ('+2.50', '−0.75', '0.00')
    """
    if value is None:
        return NONE
    return "0.00" if round(value, 2) == 0 else f"{value:+.2f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share of the parameters."""
    return NONE if value is None else f"{value:.2f} %"


def times(value: float | None) -> str:
    """A multiple of the plain multi-task cost."""
    return NONE if value is None else f"{value:.2f} ×"


def count(value: int | None) -> str:
    """A whole number in groups of three digits."""
    return NONE if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """Seconds as one would say them.

    Example:
        >>> duration(42.3), duration(272), duration(7260)
        ('42.3 s', '4 min 32 s', '2 h 1 min')
    """
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def setting(value: Any) -> str:
    """A setting as text: lists by commas, what is nested as JSON.

    Example:
        >>> setting([0, 1]), setting(True), setting({"lr": 0.1}), setting(1000)
        ('0, 1', 'yes', '{"lr": 0.1}', '1,000')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str | float):
        return str(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(setting(item) for item in value)
    return NONE if value is None else json.dumps(value, ensure_ascii=False)
