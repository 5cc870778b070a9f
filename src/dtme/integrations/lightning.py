"""Lightning: callbacks that watch and expand.

    expand = Expand(task_losses, batches, at=500)
    Trainer(callbacks=[expand], ...).fit(module, loader, ckpt_path=...)

`configure_optimizers` reserves the group: `AdamW(dtme.parameter_groups(self, lr=...))`. Checkpoints carry the plan, and `fit`
resumes from them; for `load_from_checkpoint`, call `dtme.carry_plan(self)` at the end of the module's `__init__`. Sharded models
(FSDP, DeepSpeed) settle at the start which parameters there are: apply a plan before the training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dtme._wrappers import unwrapped
from dtme.attach.optimizer_group import MARK, reserved_group
from dtme.checkpoint.state_dict import carry_plan
from dtme.distributed.wrappers import check_not_distributed
from dtme.integrations import expanding, watching
from dtme.integrations.loss_weights import loss_weights_of
from dtme.integrations.trackers import Tracker, Wrapped, as_trackers

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'dtme.integrations.lightning needs Lightning: pip install "dtme[integrations]"'
    ) from error


class _Callback(Callback):
    """What both callbacks do."""

    analysis: Any
    trackers: list[Tracker]
    folder: Path | None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Checkpoints carry the plan from now on, and one that is loaded gives the module its own."""
        carry_plan(pl_module)
        if stage == "fit" and self.analysis is not None:
            self.analysis.check_own_batches(trainer.train_dataloader)
            self.analysis.check_own_batches(trainer.fit_loop._data_source.instance)
        if self.folder is None:
            self.folder = Path(trainer.default_root_dir) / "dtme"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the trackers."""
        if not self.trackers and trainer.is_global_zero:
            self.trackers = as_trackers(
                Wrapped(logger.log_metrics, getattr(logger, "experiment", None), step_key="trainer/global_step")
                for logger in trainer.loggers
            )


class Watch(watching.Watch, _Callback):
    """`dtme.integrations.Watch` as a callback; reports go to `default_root_dir/dtme`, if no folder is given.

    It hands `task_losses` the LightningModule. Each task's own loss in training is logged every `log_every_n_steps`, if the
    module sums them by `LossWeights`.
    """

    _logged = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Analyse and log, if it is time."""
        step = trainer.global_step
        if step != self._logged and step % trainer.log_every_n_steps == 0:
            self._logged = step
            for weights in loss_weights_of(pl_module):
                means = {f"loss/{task}": loss for task, loss in weights.take_means().items()}
                for logger in trainer.loggers:
                    logger.log_metrics(means, step=step)
        self.after_step(pl_module, step)


class Expand(expanding.Expand, _Callback):
    """`dtme.integrations.Expand` as a callback; report and plan go to `default_root_dir/dtme`, if no folder is given.

    It hands `task_losses` the LightningModule, and applies the plan to it, so that names of blocks begin there.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse now what could not expand later, and expand for `at=0`."""
        super().on_train_start(trainer, pl_module)
        if self.is_due(pl_module, self.at):
            check_not_distributed(unwrapped(trainer.strategy.model))
            reserved_group(_optimizer_of(trainer), "Expand")
            self.check_loss_weights(pl_module)
        self.after_step(pl_module, _optimizer_of(trainer), trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Expand, if it is time; checkpoints of this step have the plan already."""
        self.after_step(pl_module, _optimizer_of(trainer), trainer.global_step)


def _optimizer_of(trainer: Any) -> Any:
    """The optimizer with the reserved group, of several; without one the first."""
    reserving = (one for one in trainer.optimizers if any(group.get(MARK) for group in one.param_groups))
    return next(reserving, next(iter(trainer.optimizers), None))
