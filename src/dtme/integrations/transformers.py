"""transformers' Trainer: a mixin that keeps the optimizer's group and resumes, and callbacks that watch and expand.

    class MyTrainer(TrainerMixin, Trainer): ...

    expand = Expand(task_losses, batches, at=500)
    MyTrainer(model, args, train_dataset=data, callbacks=[expand]).train(resume_from_checkpoint=...)

The model's weights carry its plan, and so does every checkpoint's `dtme.json`. Without the mixin, give Trainer an optimizer
made with `dtme.parameter_groups`. Sharded models (FSDP, DeepSpeed) settle at the start which parameters there are: apply a plan
before the training.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dtme.attach.apply import added_parameters
from dtme.attach.optimizer import FASTER
from dtme.attach.optimizer_group import MARK, check_takes_parameters, release, reserved_group
from dtme.checkpoint.plan_file import resume, write_plan
from dtme.checkpoint.state_dict import carry_plan, explain_loading
from dtme.distributed.wrappers import check_not_distributed
from dtme.integrations import expanding, watching
from dtme.integrations.loss_weights import loss_weights_of
from dtme.integrations.trackers import Tracker, as_trackers, tracker_of

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'dtme.integrations.transformers needs transformers: pip install "dtme[integrations]"'
    ) from error

if TYPE_CHECKING:
    from transformers import Trainer

    _Trainer = Trainer
else:
    _Trainer = object


class TrainerMixin(_Trainer):
    """Put it in front of Trainer: `class MyTrainer(TrainerMixin, Trainer)`.

    Its optimizer reserves a group for what a plan adds, without weight decay; `resume_from_checkpoint` applies the plan of the
    checkpoint before its weights are loaded, also where the model is sharded; beside the loss, each task's own is logged, if
    the model sums them by `LossWeights`; callbacks of this package log to the trackers of `report_to`.

    Attributes:
        insert_lr: Learning rate of what a plan adds; `None` is three times that of the others.
    """

    insert_lr: float | None = None

    def create_optimizer(self, model: Any = None) -> Any:
        """As Trainer does, with the reserved group."""
        fresh = self.optimizer is None
        super().create_optimizer(model)
        optimizer: Any = self.optimizer
        if fresh and not any(group.get(MARK) for group in optimizer.param_groups):
            check_takes_parameters(optimizer, "TrainerMixin")
            added = [parameter for _, parameter in added_parameters(_module(self.model if model is None else model))]
            release(optimizer, added)
            rate = self.args.learning_rate
            rate = FASTER * rate if self.insert_lr is None else self.insert_lr
            optimizer.add_param_group({"params": added, "lr": rate, "weight_decay": 0.0, MARK: True})
        carry_plan(_module(self.model), optimizer=optimizer)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Watch | Expand):
                callback.trainer = self
        return optimizer

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        resume(_module(self.model), resume_from_checkpoint)  # of a model that is about to be sharded
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            carry_plan(_module(self.model if model is None else model), optimizer=self.optimizer)
            resume(_module(self.model if model is None else model), resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_plan(_module(self.model), output_dir or str(self.args.output_dir))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer does, with the tasks' own losses beside that of the training."""
        if "loss" in logs:
            for weights in loss_weights_of(_module(self.model)):
                logs = {**logs, **{f"loss/{task}": loss for task, loss in weights.take_means().items()}}
        super().log(logs, start_time)


class _Callback(TrainerCallback):
    """What both callbacks do."""

    trainer: Any = None
    analysis: Any
    trackers: list[Tracker]
    folder: Path | None

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Checkpoints carry the plan from now on, and one that is loaded gives the model its own."""
        if model is not None:
            carry_plan(model, optimizer=others.get("optimizer"))
            explain_loading(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Check what would fail at a later step, and find the trackers."""
        carry_plan(model, optimizer=others.get("optimizer"))
        if self.analysis is not None:
            self.analysis.check_own_batches(others.get("train_dataloader"))
        if self.folder is None:
            self.folder = Path(args.output_dir) / "dtme"
        if not self.trackers and self.trainer is not None:
            self.trackers = as_trackers(_trackers_of(self.trainer))


class Watch(watching.Watch, _Callback):
    """`dtme.integrations.Watch` as a callback; reports go to `output_dir/dtme`, if no folder is given."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Analyse, if it is time."""
        self.after_step(model, state.global_step)


class Expand(expanding.Expand, _Callback):
    """`dtme.integrations.Expand` as a callback; report and plan go to `output_dir/dtme`, if no folder is given."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Refuse now what could not expand later, and expand for `at=0`."""
        super().on_train_begin(args, state, control, model=model, **others)
        if self.is_due(model, self.at):
            if getattr(args, "n_gpu", 1) > 1:
                raise ValueError(
                    "Expand: nn.DataParallel copies the model at every step, which inserts do not survive. Start one process "
                    "for each GPU: torchrun."
                )
            check_not_distributed(model)
            reserved_group(others.get("optimizer"), "Expand")
            self.check_loss_weights(model)
        self.after_step(model, others.get("optimizer"), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Expand, if it is time: gradients are zero, and the checkpoint of this step has the plan already."""
        self.after_step(model, others.get("optimizer"), state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """The plan beside the checkpoint, for `dtme.resume`."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write_plan(_module(model), folder)


def _trackers_of(trainer: Any) -> list[Tracker]:
    """Those that Trainer's own callbacks keep, in the first process."""
    natives = [(getattr(callback, "tb_writer", None), None) for callback in trainer.callback_handler.callbacks] + [
        (getattr(getattr(callback, "_wandb", None), "run", None), "train/global_step")
        for callback in trainer.callback_handler.callbacks
    ]
    found = (tracker_of(native, step_key=key) for native, key in natives if native is not None)
    return [tracker for tracker in found if tracker is not None]


def _module(model: Any) -> nn.Module:
    return getattr(model, "_orig_mod", model)
