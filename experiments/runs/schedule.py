"""The jobs of a seed, in an order in which none waits for long: which rows are missing, and what each of them waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from experiments.dense.branch_point import BranchPoint, train_first_steps
from experiments.dense.experiment import Bench
from experiments.dense.methods import Method
from experiments.dense.pretraining import begin_all
from experiments.runner.jobs import Job, Report, leave_out
from experiments.runs.by_name import method_of
from experiments.runs.measure_cost import is_priced, price
from experiments.runs.rows import begin_wide, finish, go_on_to, single_task, start_of_its_own


def jobs_of(bench: Bench, methods: Sequence[str], label: str = "") -> list[Job]:
    """The jobs of one seed, the longest first among those that can start together; finished ones are left out.

    Args:
        bench: The seed.
        methods: Names of the rows.
        label: Put before the names of jobs, where several seeds run together.

    Raises:
        ValueError: A method is unknown, or is not for this suite.
    """
    wanted = [method_of(name) for name in methods]
    for method in wanted:
        if isinstance(method.weights, Mapping) and bench.suite not in method.weights:
            raise ValueError(
                f"methods: {method.name!r} has weights for the losses of {', '.join(method.weights)} only, not of "
                f"{bench.suite!r}."
            )
    data = _data_jobs(bench)
    ready = tuple(job.name for job in data)
    inserting = [method for method in wanted if method.plan is not None]
    priced = [method for method in wanted if method.lasts is not None]
    shaped = {start_of_its_own(method): method for method in wanted if method.shape is not None}
    points = list(dict.fromkeys(method.branch for method in wanted if method.branch != BranchPoint()))
    jobs = [
        Job("start", begin_all, (bench,), after=ready),
        Job("MT, first steps", train_first_steps, (bench,), after=("start",)),
        *(Job(point.name, go_on_to, (bench, point), after=(method_of(point.of).branch.name,)) for point in points),
        *(Job(start, begin_wide, (bench, method.name), after=ready) for start, method in shaped.items()),
        Job(
            "cost",
            price,
            (bench, tuple(methods)),
            after=("MT, first steps", *(point.name for point in points), *shaped),
            alone=True,
        ),
        *(Job(method.name, finish, (bench, method.name), after=("cost", "MT, first steps")) for method in priced),
        *(
            Job(method.name, finish, (bench, method.name), after=(method.branch.name,))
            for method in reversed(inserting)
        ),
        *(
            Job(
                method.name,
                finish,
                (bench, method.name),
                after=(method.branch.name if method.shape is None else start_of_its_own(method),),
            )
            for method in wanted
            if method not in (*priced, *inserting) and method.name != "ST"
        ),
        *(
            Job(f"ST {task}", single_task, (bench, task), after=("start",))
            for task in bench.loss_weights
            if any(method.name == "ST" for method in wanted)
        ),
    ]
    done = {job.name for job in jobs if bench.is_done(job.name)}
    done -= {method.name for method in wanted if method.name in done and _is_stale(bench, method)}
    begun = {point.name: point for point in (BranchPoint(), *points) if point.name in done}
    awaited = {name for job in jobs if job.name not in done for name in job.after}
    done -= {name for name in awaited & begun.keys() if not begun[name].is_whole(bench)}
    if "cost" in done and not is_priced(bench, methods):
        done.discard("cost")
    return leave_out(done, jobs, data, label)


def _is_stale(bench: Bench, method: Method) -> bool:
    """Whether a finished row was trained with other weights than its method has now."""
    if not isinstance(method.weights, Mapping):
        return False
    weights = dict(method.weights[bench.suite])
    return bench.read_row(method.name).get("weights", weights) != weights


def _data_jobs(bench: Bench) -> list[Job]:
    """Scenes are rendered by as many processes as there are splits; an archive is read by one."""
    if bench.suite == "nuclei":
        return [Job("nuclei", read, (bench,))]
    if bench.suite != "scenes":
        return []  # read from disk, batch by batch
    splits = zip(("pretrain", "train", "test"), bench.recipe.images, strict=True)
    return [Job(f"scenes, {split}", render, (bench, split, count)) for split, count in splits if count]


def read(bench: Bench, report: Report) -> None:
    """Make the suite's data, once."""
    bench.load(report)


def render(bench: Bench, split: Literal["pretrain", "train", "test"], count: int, report: Report) -> None:
    """Render one split of the scenes, once."""
    from experiments.dense import scenes

    size = bench.recipe.size
    assert isinstance(size, int)
    scenes.render_split(split, count, size=size, progress=lambda done: report(done, count))
