"""accelerate: watch the conflicts, expand once, resume. `accelerate launch examples/with_accelerate.py [--resume]`."""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import dtme
from dtme.integrations import Expand, Watch
from dtme.integrations.accelerate import checkpoint_plan, trackers_of
from two_tasks import TwoTasks, samples, task_losses


def main(folder: str = "runs/accelerate", steps: int = 40, resume: bool = False) -> TwoTasks:
    """Train, and expand in the midst of it."""
    accelerator = Accelerator(
        cpu=True, project_dir=folder
    )  # log_with="tensorboard" or "wandb" gets the numbers and a map
    model = TwoTasks()
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))  # with a group for what the plan will add
    loader = DataLoader(samples(16 * steps, seed=0), batch_size=16, generator=torch.Generator())
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    checkpoint_plan(accelerator, wrapped, optimizer)
    batches = DataLoader(samples(64, seed=1), batch_size=16)  # for analyses; accelerate does not prepare them
    trackers = trackers_of(accelerator)
    watch = Watch(task_losses, batches, every=steps // 4, trackers=trackers, folder=folder)
    expand = Expand(
        task_losses, batches, at=steps // 2, loss_weights=model.loss_weights, trackers=trackers, folder=folder
    )
    step = 0
    if resume:
        accelerator.load_state(f"{folder}/state")
        step = steps // 2
    for batch in accelerator.skip_first_batches(loader, step):
        accelerator.backward(wrapped(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        watch.after_step(wrapped, step)
        expand.after_step(wrapped, optimizer, step)
        if step == steps // 2:
            accelerator.save_state(f"{folder}/state")
    print(dtme.plan_of(model))
    return model


if __name__ == "__main__":
    main(resume="--resume" in sys.argv)
