"""transformers' Trainer: watch the conflicts, expand once, resume. `python examples/with_trainer.py [--resume]`."""

from __future__ import annotations

import sys

from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import dtme
from dtme.integrations.transformers import Expand, TrainerMixin, Watch
from two_tasks import TwoTasks, samples, task_losses


class MyTrainer(TrainerMixin, Trainer):
    """Trainer, whose optimizer reserves a group for what the plan adds, and which resumes with the checkpoint's plan."""


def main(folder: str = "runs/trainer", steps: int = 40, resume: bool = False) -> TwoTasks:
    """Train, and expand in the midst of it."""
    model = TwoTasks()
    batches = DataLoader(samples(64, seed=1), batch_size=16)  # for analyses: the training's own loader is left alone
    args = TrainingArguments(
        folder,
        max_steps=steps,
        save_steps=steps // 4,
        logging_steps=steps // 4,
        learning_rate=1e-3,
        report_to="none",  # or "tensorboard", "wandb": they get the numbers, a map and the report
        use_cpu=True,
        disable_tqdm=True,
        label_names=["kind", "size"],
    )
    callbacks = [
        Watch(task_losses, batches, every=steps // 4),
        Expand(task_losses, batches, at=steps // 2, loss_weights=model.loss_weights),  # plan="faithful": the paper's
    ]
    trainer = MyTrainer(model, args, train_dataset=samples(256, seed=0), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    print(dtme.plan_of(model))
    return model


if __name__ == "__main__":
    main(resume="--resume" in sys.argv)
