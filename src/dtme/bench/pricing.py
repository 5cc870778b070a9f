"""The job that prices the rows of a seed: what a step and a pass of each method cost, in time and in FLOPs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from dtme.bench.branch_point import BranchPoint, analyse, plain_run
from dtme.bench.catalogue import method_of
from dtme.bench.cost import costs, flops, training_step
from dtme.bench.experiment import Bench, figures, is_done, keep
from dtme.bench.jobs import Report
from dtme.bench.methods import Method
from dtme.bench.model import build
from dtme.bench.price import counting
from dtme.bench.rivals import counting_run
from dtme.bench.rows import run_of
from dtme.bench.training import Run, optimiser


def is_priced(bench: Bench, methods: Sequence[str]) -> bool:
    """Whether all that the prices of these methods are made of is known."""
    return "analysis_of_a_batch" in figures(bench, "cost") and not _unpriced(bench, map(method_of, methods))


def _unpriced(bench: Bench, methods: Iterable[Method]) -> list[Method]:
    """Those of some methods whose price is not known, or not that of counting conflicts before."""
    known = figures(bench, "cost")["costs"] if is_done(bench, "cost") else {}
    return [
        method
        for method in methods
        if method.name not in known or (method.counted and counting(method.name) not in known)
    ]


def price(bench: Bench, methods: Sequence[str], report: Report) -> None:
    """What a step and a pass of each method cost, taken in turns, and how many parameters it adds; what is priced stays so."""
    suite, recipe = bench.load(), bench.recipe
    known = figures(bench, "cost") if is_done(bench, "cost") else {"costs": {}, "added": {}}
    wanted = {method.name: method for method in map(method_of, methods)}
    for method in list(wanted.values()):
        for other in (method.branch.of, *(() if method.lasts is None else method.lasts[:1])):
            wanted.setdefault(other, method_of(other))
    runs: dict[str, list[Run]] = {}
    wanted = {method.name: method for method in (method_of("MT"), *_unpriced(bench, wanted.values()))}
    for name, method in wanted.items():
        if name == "ST":
            models = [build((task,), recipe, bench.seed) for task in suite.tasks]
            runs[name] = [
                Run(model, (task,), optimiser(model, recipe)) for model, task in zip(models, suite.tasks, strict=True)
            ]
        elif method.lasts is None and method.longer == 1:  # else its steps are those of MT
            runs[name] = [run_of(bench, suite, method)]
            if method.counted:
                runs[counting(name)] = [counting_run(plain_run(bench, suite).model, bench, suite)[0]]
    plain = _parameters(runs["MT"])
    found = costs(runs, suite.train, recipe, advance=report)
    priced = {name: asdict(found.get(name, found["MT"])) for name in (*wanted, *found)}
    plain_step = flops(lambda: training_step(runs["MT"][0], suite.train.batch(slice(0, recipe.batch))))
    one = BranchPoint(reading=1 / recipe.analysis_batches)
    analysis = flops(lambda: analyse(runs["MT"][0].model, bench, suite, one)) / plain_step
    added = {name: _parameters(runs[name]) - plain if name in runs and name != "ST" else 0 for name in wanted}
    costs_of, added_of = {**known["costs"], **priced}, {**known["added"], **added}
    keep(bench, "cost", {"costs": costs_of, "added": added_of, "analysis_of_a_batch": analysis})


def _parameters(runs: Sequence[Run]) -> int:
    return sum(p.numel() for run in runs for p in run.model.parameters())
