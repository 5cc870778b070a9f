"""The job that prices the rows of a seed: what a step and a pass of each method cost, in time and in FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from dtme.attach.cost import plain_products
from dtme.measure.products import Products
from experiments.dense.alternatives import counting_run
from experiments.dense.branch_point import analyse, fullest_batch, plain_run
from experiments.dense.experiment import Bench
from experiments.dense.methods import Method
from experiments.dense.model import build
from experiments.dense.suite import Suite
from experiments.dense.training import begin
from experiments.runner.jobs import Report
from experiments.runs.by_name import method_of
from experiments.runs.rows import run_of
from experiments.runs.total_cost import counting
from experiments.training.run import Run
from experiments.training.step_cost import TURNS, compare, count_parameters, infer, take_step


def is_priced(bench: Bench, methods: Sequence[str]) -> bool:
    """Whether all that the prices of these methods are made of is known."""
    return "analysis_of_a_batch" in bench.read_row("cost") and not _unpriced(bench, map(method_of, methods))


def _unpriced(bench: Bench, methods: Iterable[Method]) -> list[Method]:
    """Those of some methods whose price is not known, or not that of counting conflicts before."""
    known = bench.read_row("cost")["costs"] if bench.is_done("cost") else {}
    return [
        method
        for method in methods
        if method.name not in known or (method.counted and counting(method.name) not in known)
    ]


def price(bench: Bench, methods: Sequence[str], report: Report) -> None:
    """What a step and a pass of each method cost, taken in turns, and how many parameters it adds; what is priced stays so.

    Costs are multiples of plain multi-task training's: `step` and `inference` in time, the others in floating-point operations.
    """
    suite = bench.load()
    known = bench.read_row("cost") if bench.is_done("cost") else {"costs": {}, "added": {}}
    wanted = {method.name: method for method in map(method_of, methods)}
    for method in list(wanted.values()):
        for other in (method.branch.of, *(() if method.lasts is None else method.lasts[:1])):
            wanted.setdefault(other, method_of(other))
    batch = fullest_batch(bench, suite)
    plain = run_of(bench, suite, method_of("MT"))
    analysis = flops(lambda: analyse(plain.model, bench, suite, batches=[batch]))
    parameters, of_plain = count_parameters([plain]), _flops_of([plain], batch)
    same = {"step": 1.0, "inference": 1.0, "step_flops": 1.0, "inference_flops": 1.0}  # its steps are those of MT
    costs, added = {**known["costs"], "MT": same}, {**known["added"], "MT": 0}
    unpriced = [method for method in _unpriced(bench, wanted.values()) if method.name != "MT"]
    for done, method in enumerate(unpriced):
        costs[method.name], added[method.name] = same, 0
        for name, make in _makers(bench, suite, method).items():
            own = make()
            of_step, of_pass = compare(plain, own, [batch] * (TURNS + 1))
            step_flops, pass_flops = (
                mine / theirs for mine, theirs in zip(_flops_of(own, batch), of_plain, strict=True)
            )
            costs[name] = {
                "step": of_step,
                "inference": of_pass,
                "step_flops": step_flops,
                "inference_flops": pass_flops,
            }
            if name == method.name != "ST":
                added[name] = count_parameters(own) - parameters
        report(done + 1, len(unpriced))
    bench.write_row("cost", {"costs": costs, "added": added, "analysis_of_a_batch": analysis / of_plain[0]})


def _makers(bench: Bench, suite: Suite, method: Method) -> dict[str, Callable[[], list[Run]]]:
    """What makes the runs that are priced for a method, by the name of the price; nothing where it trains as MT does."""
    if method.name == "ST":
        return {"ST": partial(_single_runs, bench, suite)}
    if method.lasts is not None or method.longer != 1:
        return {}
    makers: dict[str, Callable[[], list[Run]]] = {method.name: lambda: [run_of(bench, suite, method)]}
    if method.counted:
        makers[counting(method.name)] = lambda: [counting_run(plain_run(bench, suite).model, bench, suite)[0]]
    return makers


def _single_runs(bench: Bench, suite: Suite) -> list[Run]:
    recipe = bench.recipe
    return [
        begin(build((task,), recipe, bench.seed), (task,), suite.train, recipe, seed=bench.seed) for task in suite.tasks
    ]


def _flops_of(runs: Sequence[Run], batch: Any) -> list[int]:
    """Floating-point operations of a training step, forward and backward, and of a pass."""
    return [sum(flops(partial(work, run, batch)) for run in runs) for work in (take_step, infer)]


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of some work, with attention as plain products, which the counter knows on every device."""
    counted: list[int] = []
    with plain_products(), Products(lambda flops, *_: counted.append(flops)):
        work()
    return sum(counted)
