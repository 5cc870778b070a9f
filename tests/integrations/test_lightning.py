"""Lightning: resumed at any step as if it had never stopped, loaded on its own, logs, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from loops import BLOCK, TASKS, TwoTasks, Words, assert_same, own_batches, task_losses
from torch.utils.data import DataLoader, Sampler

import dtme
from dtme.integrations.lightning import Expand, Watch

STEPS, AT = 8, 3
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty.*"),
]
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    """A module as people write it."""

    def __init__(self, seed: int = 0, carries: bool = False) -> None:
        super().__init__()
        self.model = TwoTasks(seed)
        for layer in self.model.trunk.layers:  # Lightning keeps no random numbers, and dropout would differ
            for module in layer.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            layer.self_attn.dropout = 0.0
        if carries:
            dtme.carry_plan(self)

    def training_step(self, batch: Any, number: int) -> Any:
        return self.model(**batch)["loss"]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(dtme.parameter_groups(self, lr=1e-2, weight_decay=0.1))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-2, 3e-2], total_steps=STEPS + 2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class InTurn(Sampler[int]):
    """One batch each epoch, the next of the data: Lightning resumes between two epochs, and this makes it any step."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[int]:
        return iter(range(4 * self.epoch % 32, 4 * self.epoch % 32 + 4))


def losses(module: Any, batch: Any) -> Any:
    return task_losses(module.model, batch)


INSIDE = dtme.Plan(TASKS, {f"model.{BLOCK(1)}": TASKS}, {f"model.{BLOCK(2)}": ("kind",)}, {f"model.{BLOCK(2)}": TASKS})


def expanding(**others: Any) -> Expand:
    return Expand(losses, own_batches(), at=AT, **{"plan": lambda report: INSIDE, **others})


def fitted(
    folder: Path,
    module: Any,
    *callbacks: Any,
    resume: Path | None = None,
    loader: Any = None,
    each: str = "step",
    **others: Any,
) -> Any:
    often: Any = {"every_n_train_steps": 1} if each == "step" else {"save_on_train_epoch_end": True}
    keeping = ModelCheckpoint(dirpath=folder, save_top_k=-1, filename=f"{{{each}}}", **often)
    trainer = lightning.Trainer(
        **{
            "max_steps": STEPS,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "callbacks": [*callbacks, keeping],
            **others,
        }
    )
    loader = DataLoader(Words(20), batch_size=4) if loader is None else loader
    trainer.fit(module, loader, ckpt_path=resume, weights_only=None if resume is None else True)
    return trainer


def test_resumed_at_any_step_as_if_it_had_never_stopped(tmp_path: Path):
    undisturbed = Module()
    loader = DataLoader(Words(), batch_size=4, sampler=InTurn())
    fitted(tmp_path, undisturbed, expanding(), loader=loader, each="epoch")
    assert dtme.plan_of(undisturbed) == INSIDE
    for step in (1, AT, AT + 1, STEPS - 1):  # before, at and after the expansion
        module = Module(seed=7)
        last = tmp_path / f"epoch={step - 1}.ckpt"
        fitted(tmp_path / "again", module, expanding(), resume=last, loader=loader, each="epoch")
        assert_same(module.state_dict(), undisturbed.state_dict())


def test_a_module_that_carries_its_plan_is_loaded_on_its_own(tmp_path: Path):
    module = Module()
    fitted(tmp_path, module, expanding())
    last = tmp_path / f"step={STEPS}.ckpt"
    again = Module.load_from_checkpoint(last, seed=7, carries=True, weights_only=True)
    assert dtme.plan_of(again) == INSIDE
    assert_same(again.state_dict(), module.state_dict())
    assert dtme.plan_of(Module.load_from_checkpoint(tmp_path / "step=1.ckpt", carries=True, weights_only=True)) is None
    with pytest.raises(RuntimeError, match=r"dtme_plan: call dtme\.carry_plan\(model\) before loading"):
        Module.load_from_checkpoint(last, weights_only=True)


def test_with_accumulated_gradients(tmp_path: Path):
    undisturbed, module = Module(), Module(seed=7)
    fitted(tmp_path, undisturbed, expanding(), accumulate_grad_batches=2)
    fitted(tmp_path, module, expanding(), accumulate_grad_batches=2, resume=tmp_path / f"step={AT}.ckpt")
    assert dtme.plan_of(module) == INSIDE


@pytest.mark.parametrize("accumulation", [1, 2])
def test_watching_leaves_the_training_unchanged(accumulation: int, tmp_path: Path):
    lightning.seed_everything(0)
    plain, watched = Module(), Module()
    for module in (plain, watched):
        for layer in module.model.trunk.layers:
            layer.dropout.p = 0.2
    watch = Watch(losses, DataLoader(Words(8, seed=1), 4, shuffle=True), every=2)
    for module, callbacks in ((plain, []), (watched, [watch])):
        torch.manual_seed(3)
        fitted(tmp_path, module, *callbacks, accumulate_grad_batches=accumulation, enable_checkpointing=True)
    state = {name: tensor for name, tensor in watched.state_dict().items() if "dtme_plan" not in name}
    assert_same(plain.state_dict(), state)
    steps = {path.stem for path in (tmp_path / "dtme").iterdir()}
    assert steps == {f"report-{step}" for step in (2, 4, 6, 8)}


def test_report_plan_and_losses_are_kept(tmp_path: Path):
    module = Module()
    logger = CSVLogger(tmp_path, name="csv", version=0)
    callbacks = [
        Watch(losses, own_batches(), every=4),
        expanding(plan="recommended", loss_weights=module.model.loss_weights),
    ]
    fitted(tmp_path, module, *callbacks, logger=logger, log_every_n_steps=2)
    report = dtme.ConflictReport.load(tmp_path / "dtme" / f"report-{AT}.json")
    assert dtme.Plan.load(tmp_path / "dtme" / f"plan-{AT}.json") == report.recommended() == dtme.plan_of(module)
    assert float(module.model.loss_weights.values.prod()) == pytest.approx(1.0)
    assert float(module.model.loss_weights.values[0]) != 1.0
    head = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"loss/kind", "loss/size", "analysis/loss/kind", f"conflict/null/model.{BLOCK(2)}"} <= set(head)


def test_tensorboard_gets_the_map(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="events", version=0)
    fitted(tmp_path, Module(), Watch(losses, own_batches(), every=4), logger=logger, log_every_n_steps=4)
    events = EventAccumulator(str(tmp_path / "events" / "version_0"))
    events.Reload()
    assert events.Tags()["images"] == ["conflict/map"]
    assert [event.step for event in events.Scalars("loss/kind")] == [4, 8]
    assert [event.step for event in events.Scalars("even_weight/kind")] == [4, 8]


def test_an_expansion_before_the_first_step(tmp_path: Path):
    module = Module()
    fitted(tmp_path, module, Expand(at=0, plan=INSIDE), max_steps=2)
    assert dtme.plan_of(module) == INSIDE


def test_an_optimizer_without_the_group_is_refused_at_the_start(tmp_path: Path):
    module = Module()
    module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters())
    with pytest.raises(ValueError, match=r"Expand: this \w+ has no group .*dtme\.parameter_groups"):
        fitted(tmp_path, module, expanding())
    assert dtme.plan_of(module) is None


def test_the_loader_of_the_training_is_refused(tmp_path: Path):
    loader = DataLoader(Words(20), batch_size=4)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Watch(losses, loader, every=1)],
    )  # fmt: skip
    with pytest.raises(ValueError, match="batches is the loader of the training itself"):
        trainer.fit(Module(), loader)
