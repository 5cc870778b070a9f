"""Training to the end, from where an interrupted run of the same settings was last written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from experiments.runner.jobs import Report
from experiments.runner.processes import by_first
from experiments.runner.resume import read_again, write_down
from experiments.training.experiment import Experiment
from experiments.training.run import Run, train

KEPT_EVERY = 200
"""Steps after which an unfinished run is written down, so that it can go on from there."""


def train_to_end(
    bench: Experiment,
    name: str,
    run: Run,
    report: Report,
    look: Callable[[Run], None] | None = None,
    looks_at: Sequence[int] = (),
) -> None:
    """Train to the end; whoever has kept what it is for takes the state away, by `forget`.

    Args:
        bench: Where unfinished runs are kept.
        name: Of what is trained.
        run: Changed in place.
        report: Told the steps done.
        look: Called with the run, which it leaves as it was but for `Run.looks`, after each of the steps `looks_at`.
        looks_at: See `look`.
    """
    path, steps, every = bench.path_of(name, "pt"), run.workload.steps, bench.kept_every or KEPT_EVERY
    settings = {**bench.settings(), "steps": steps}  # a schedule may depend on the prices of other rows
    kept = read_again(path, settings)
    if kept is not None:
        run.restore(kept)
    while run.step < steps:
        train(run, min(at for at in (steps, run.step + every, *looks_at) if at > run.step), advance=report)
        if look is not None and run.step in looks_at:
            look(run)
        if run.step < steps:
            by_first(lambda: write_down(path, settings, run.state()))


def forget(bench: Experiment, name: str) -> None:
    """Take away the state of a run that has ended, or that nothing goes on from."""
    by_first(lambda: bench.path_of(name, "pt").unlink(missing_ok=True))
