"""accelerate: checkpoints that bring their plan, and its trackers for `Watch` and `Expand`.

    model, optimizer, loader = accelerator.prepare(model, AdamW(dtme.parameter_groups(model, lr=...)), loader)
    checkpoint_plan(accelerator, model, optimizer)
    expand = Expand(task_losses, batches, at=500, trackers=trackers_of(accelerator))
    ...
    expand.after_step(model, optimizer, step)

Sharded models (FSDP, DeepSpeed) settle at the start which parameters there are: apply a plan before `prepare`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from dtme.checkpoint.plan_file import resume, write_plan
from dtme.checkpoint.state_dict import carry_plan
from dtme.integrations.trackers import Tracker, Wrapped, as_trackers


def checkpoint_plan(accelerator: Any, model: nn.Module, optimizer: Any) -> None:
    """Let `accelerator.save_state` write the plan, and `load_state` apply it before the weights and states are loaded.

    The weights carry the plan, too (`dtme.carry_plan`), for those who load them otherwise. A checkpoint from before the
    expansion takes the plan out again.

    Args:
        accelerator: Whose states are saved.
        model: As `accelerator.prepare` returned it.
        optimizer: Made with `dtme.parameter_groups`, as `accelerator.prepare` returned it.
    """
    inner = accelerator.unwrap_model(model)
    carry_plan(inner, optimizer=optimizer)

    def save(models: list[Any], weights: list[Any], folder: str) -> None:
        if accelerator.is_main_process:
            write_plan(inner, folder)

    def load(models: list[Any], folder: str) -> None:
        resume(model, folder, optimizer=optimizer)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def trackers_of(accelerator: Any) -> list[Tracker]:
    """The trackers that `accelerator.init_trackers` has begun, for `Watch` and `Expand`: in the first process."""
    own = accelerator.trackers if accelerator.is_main_process else []
    return as_trackers(Wrapped(partial(_log, tracker), tracker.tracker) for tracker in own)


def _log(tracker: Any, values: dict[str, float], step: int) -> None:
    tracker.log(values, step=step)
