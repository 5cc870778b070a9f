"""Measure once in training, and act: the model gets what a plan adds, and its training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dtme._random import random_numbers_aside
from dtme._wrappers import unwrapped
from dtme.attach.apply import is_applied
from dtme.attach.optimizer import expand
from dtme.distributed.processes import processes_of
from dtme.integrations.analysing import Analysis, Batches, write_report
from dtme.integrations.loss_weights import LossWeights
from dtme.integrations.trackers import Tracker, as_trackers, tell
from dtme.measure.losses import TaskLosses
from dtme.plan.plan import Plan
from dtme.report.report import ConflictReport

Choice = str | float | Plan | Callable[[ConflictReport], Plan]
"""A plan, or how one follows from a report."""


class Expand:
    """Analyses a model once in the training of any loop, applies a plan, and lets the optimizer train what it adds.

    A model that has a plan already, because its training was resumed from a later checkpoint say, is left as it is. What is
    drawn at random to begin with depends on `seed` alone, and no other random number is another for it.

    Args:
        task_losses: As in `dtme.analyze`.
        batches: As in `Watch`.
        at: After how many steps; 0 is before the first.
        plan: `"recommended"` is `report.recommended()`, ours, beside even weights of the losses where `loss_weights` is given;
            `"faithful"` is `report.plan()`, the paper's; a number is a budget, `report.recommended(max_cost=1.5)`; a function
            makes a plan of the report; and a plan is taken as it is, without an analysis.
        loss_weights: A module of the model, whose weights are set to `report.even_weights()` first. Not for `"faithful"`.
        branches: As in `dtme.apply`.
        seed: Of what inserts begin with.
        trackers: As in `Watch`.
        folder: For the report and the plan, `plan-STEP.json`; `None` writes none.
        options: Further ones of `dtme.analyze`.

    Raises:
        ValueError: An option is out of range, or what an analysis needs is missing.
    """

    def __init__(
        self,
        task_losses: TaskLosses | None = None,
        batches: Batches | None = None,
        *,
        at: int,
        plan: Choice = "recommended",
        loss_weights: LossWeights | None = None,
        branches: Mapping[str, nn.Module | str] | None = None,
        seed: int = 0,
        trackers: Iterable[Tracker] = (),
        folder: str | Path | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(at, int) or at < 0:
            raise ValueError(f"at={at!r}: give a number of steps of at least 0.")
        _check(plan, loss_weights)
        self.analysis = None
        if task_losses is not None and batches is not None:
            self.analysis = Analysis(task_losses, batches, options)
        elif not isinstance(plan, Plan) or loss_weights is not None:
            raise ValueError(
                "Expand: task_losses and batches are wanted for the analysis. Only a plan that is given, without loss_weights, "
                "needs none."
            )
        self.at, self.plan, self.loss_weights = at, plan, loss_weights
        self.branches, self.seed = branches, seed
        self.trackers = as_trackers(trackers)
        self.folder = None if folder is None else Path(folder)

    def is_due(self, model: nn.Module, step: int) -> bool:
        """Whether so many steps are done, and the model has no plan yet."""
        return step >= self.at and not is_applied(model)

    def after_step(self, model: nn.Module, optimizer: Any, step: int) -> ConflictReport | None:
        """Call it when a step is done and gradients are set to zero, in every process, and before the first step for `at=0`.

        Args:
            model: Also in DistributedDataParallel.
            optimizer: Made with `dtme.parameter_groups`.
            step: How many steps are done.

        Returns:
            The report that the plan was made of, if there was an analysis just now.

        Raises:
            ValueError: The optimizer has no reserved group, the plan does not fit, or `loss_weights` is no module of the model.
        """
        if not self.is_due(model, step):
            return None
        self.check_loss_weights(model)
        report, losses = (None, {}) if self.analysis is None else self.analysis.run(model)
        plan = self._choose(report)
        if self.loss_weights is not None and report is not None:
            self.loss_weights.set(report.even_weights())
        with random_numbers_aside(self.seed):
            expand(model, optimizer, plan, branches=self.branches)
        if processes_of(None).rank == 0:
            self._record(plan, report, losses, step)
        return report

    def check_loss_weights(self, model: nn.Module) -> None:
        """Refuse weights that no checkpoint would hold.

        Raises:
            ValueError: They are no module of the model.
        """
        if self.loss_weights is not None and all(
            module is not self.loss_weights for module in unwrapped(model).modules()
        ):
            raise ValueError(
                "loss_weights is no module of the model, so that checkpoints would not hold the weights. Make it one: "
                "self.loss_weights = LossWeights(tasks)."
            )

    def _choose(self, report: ConflictReport | None) -> Plan:
        if isinstance(self.plan, Plan):
            return self.plan
        assert report is not None
        if callable(self.plan):
            plan = self.plan(report)
            if not isinstance(plan, Plan):
                raise ValueError(
                    f"plan={self.plan!r} gave {plan!r} for the report: give a function that returns a Plan."
                )
            return plan
        if self.plan == "faithful":
            return report.plan()
        return report.recommended(max_cost=None if self.plan == "recommended" else float(self.plan))

    def _record(self, plan: Plan, report: ConflictReport | None, losses: Mapping[str, float], step: int) -> None:
        files = [] if report is None else write_report(report, self.folder, step)
        if self.folder is not None:
            files.append(self.folder / f"plan-{step}.json")
            plan.save(files[-1])
        if report is not None:
            tell(self.trackers, report, losses, step, files)


def _check(plan: Choice, loss_weights: LossWeights | None) -> None:
    if isinstance(plan, str) and plan not in ("recommended", "faithful"):
        raise ValueError(f"plan={plan!r}: choose 'recommended' or 'faithful', or give a budget, a plan or a function.")
    if isinstance(plan, bool) or not (isinstance(plan, str | float | int | Plan) or callable(plan)):
        raise ValueError(f"plan={plan!r}: give 'recommended', 'faithful', a budget such as 1.5, a Plan or a function.")
    if isinstance(plan, float | int) and plan <= 1:
        raise ValueError(f"plan={plan!r}: a budget is a multiple of the plain model's cost, above 1.")
    if plan == "faithful" and loss_weights is not None:
        raise ValueError("plan='faithful' is the paper's, which leaves the losses as they are: leave out loss_weights.")
