"""Lightning: watch the conflicts, expand once, resume from any checkpoint. `python examples/with_lightning.py [CHECKPOINT]`."""

from __future__ import annotations

import sys
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import dtme
from dtme.integrations.lightning import Expand, Watch
from two_tasks import TwoTasks, samples, task_losses


class Module(lightning.LightningModule):
    """A module as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TwoTasks()

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        """The sum."""
        return self.model(**batch)["loss"]

    def configure_optimizers(self) -> Any:
        """With a group for what the plan will add."""
        return torch.optim.AdamW(dtme.parameter_groups(self, lr=1e-3))


def main(folder: str = "runs/lightning", steps: int = 40, checkpoint: str | None = None) -> Module:
    """Train, and expand in the midst of it."""
    module = Module()
    batches = DataLoader(samples(64, seed=1), batch_size=16)  # for analyses: the training's own loader is left alone

    def losses(module: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return task_losses(module.model, batch)

    watch = Watch(losses, batches, every=steps // 4)
    expand = Expand(losses, batches, at=steps // 2, loss_weights=module.model.loss_weights)
    options: Any = {"accelerator": "cpu", "default_root_dir": folder, "logger": False}
    trainer = lightning.Trainer(max_steps=steps, callbacks=[watch, expand], **options)
    trainer.fit(module, DataLoader(samples(256, seed=0), batch_size=16), ckpt_path=checkpoint)
    print(dtme.plan_of(module))
    return module


if __name__ == "__main__":
    main(checkpoint=sys.argv[1] if len(sys.argv) > 1 else None)
