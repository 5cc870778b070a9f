"""A loop of one's own: watch the conflicts, expand once, resume. `python examples/own_loop.py [--resume]`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import dtme
from dtme.integrations import Expand, Watch
from two_tasks import TwoTasks, samples, task_losses


def main(folder: str = "runs/own-loop", steps: int = 40, resume: bool = False) -> TwoTasks:
    """Train, and expand in the midst of it."""
    model, checkpoint = TwoTasks(), Path(folder) / "checkpoint.pt"
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))  # with a group for what the plan will add
    dtme.carry_plan(model, optimizer=optimizer)  # its state dict brings the plan along
    batches = DataLoader(samples(64, seed=1), batch_size=16)  # for analyses
    watch = Watch(task_losses, batches, every=steps // 4, folder=folder)
    expand = Expand(task_losses, batches, at=steps // 2, loss_weights=model.loss_weights, folder=folder)
    step = 0
    if resume:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    loader = DataLoader(samples(16 * steps, seed=0), batch_size=16)
    for batch in list(loader)[step:]:
        model(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        watch.after_step(model, step)
        expand.after_step(model, optimizer, step)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, checkpoint)
    print(dtme.plan_of(model))
    return model


if __name__ == "__main__":
    main(resume="--resume" in sys.argv)
