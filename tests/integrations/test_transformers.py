"""Trainer: resumed at any step as if it had never stopped, best models of before the expansion, logs, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from loops import BLOCK, PLAN, TASKS, TwoTasks, Words, assert_same, own_batches, task_losses
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import dtme
from dtme.attach.optimizer_group import MARK
from dtme.integrations import WandB
from dtme.integrations.transformers import Expand, TrainerMixin, Watch

STEPS, AT = 8, 3


class Mixed(TrainerMixin, Trainer):
    """Trainer, as the docs say."""


@pytest.fixture(autouse=True)
def quiet() -> Any:
    transformers.logging.set_verbosity_error()
    return transformers.logging.set_verbosity_warning


def arguments(folder: Path, **others: Any) -> TrainingArguments:
    options = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "save_steps": 1,
        "logging_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "label_names": ["kind", "size"],
        "seed": 1,
    }
    return TrainingArguments(str(folder), **{**options, **others})


def expanding(**others: Any) -> Expand:
    return Expand(task_losses, own_batches(), at=AT, **{"plan": lambda report: PLAN, **others})


def trained(
    folder: Path, model: Any, *callbacks: Any, kind: type[Trainer] = Mixed, resume: Any = None, **others: Any
) -> Trainer:
    given: dict[str, Any] = {}
    if kind is Trainer:
        groups = dtme.parameter_groups(model, lr=others.get("learning_rate", 1e-2))
        given["optimizers"] = (torch.optim.AdamW(groups), None)
    if "eval_strategy" in others:
        given["eval_dataset"] = Words(8, seed=2)
    trainer = kind(model, arguments(folder, **others), train_dataset=Words(), callbacks=list(callbacks), **given)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("kind", [Mixed, Trainer], ids=["with the mixin", "with the callback alone"])
def test_resumed_at_any_step_as_if_it_had_never_stopped(kind: type[Trainer], tmp_path: Path):
    undisturbed = TwoTasks()
    trainer = trained(tmp_path, undisturbed, expanding(), kind=kind)
    assert dtme.plan_of(undisturbed) == PLAN
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups if group.get(MARK)] == [0.0]
    for step in (1, AT, AT + 1, STEPS - 1):  # before, at and after the expansion
        model = TwoTasks(seed=7)
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resume = True if kind is Mixed else str(folder / f"checkpoint-{step}")
        trained(folder, model, expanding(), kind=kind, resume=resume)
        assert_same(model.state_dict(), undisturbed.state_dict())


def test_with_accumulated_gradients_and_a_loader_that_shuffles(tmp_path: Path):
    undisturbed, model = TwoTasks(), TwoTasks(seed=7)
    shuffled = lambda: DataLoader(Words(8, seed=1), 4, shuffle=True)  # noqa: E731
    options = {"gradient_accumulation_steps": 2, "num_train_epochs": 3}

    def callback() -> Expand:
        return Expand(task_losses, shuffled, at=AT, plan=3.0)

    trained(tmp_path, undisturbed, callback(), **options)
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}")
    for step in range(AT, STEPS):
        shutil.rmtree(tmp_path / f"checkpoint-{step}", ignore_errors=step > AT)
    trained(tmp_path, model, callback(), resume=True, **options)
    assert dtme.plan_of(model) == dtme.plan_of(undisturbed) is not None
    assert_same(model.state_dict(), undisturbed.state_dict())


@pytest.mark.parametrize("kind", [Mixed, Trainer], ids=["with the mixin", "with the callback alone"])
def test_a_best_model_of_before_the_expansion_comes_back_as_it_was(kind: type[Trainer], tmp_path: Path):
    model = TwoTasks()
    trainer = trained(
        tmp_path, model, expanding(), kind=kind, learning_rate=5.0, lr_scheduler_type="constant", warmup_steps=0,
        eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    best = Path(trainer.state.best_model_checkpoint or "")
    assert int(best.name.partition("-")[2]) < AT
    assert dtme.plan_of(model) is None
    expected = dtme.carry_plan(TwoTasks(seed=7))
    expected.load_state_dict(weights_of(best))
    assert_same(model.state_dict(), expected.state_dict())
    assert [group["params"] for group in trainer.optimizer.param_groups if group.get(MARK)] == [[]]


def test_a_best_model_of_after_the_expansion_keeps_its_inserts(tmp_path: Path):
    model = TwoTasks()
    trainer = trained(
        tmp_path, model, expanding(), eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="loss",
    )  # fmt: skip
    assert int(Path(trainer.state.best_model_checkpoint or "").name.partition("-")[2]) > AT
    assert dtme.plan_of(model) == PLAN
    expected = dtme.carry_plan(TwoTasks(seed=7))
    expected.load_state_dict(weights_of(Path(trainer.state.best_model_checkpoint or "")))
    assert_same(model.state_dict(), expected.state_dict())


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_watching_leaves_the_training_unchanged(accumulation: int, tmp_path: Path):
    plain, watched = TwoTasks(), TwoTasks()
    options = {"gradient_accumulation_steps": accumulation, "save_strategy": "no", "num_train_epochs": 4}
    watch = Watch(task_losses, DataLoader(Words(8, seed=1), 4, shuffle=True), every=2)
    logs = [trained(tmp_path / "a", plain, **options), trained(tmp_path / "b", watched, watch, **options)]
    assert_same(plain.state_dict(), watched.state_dict())
    one, other = ([entry.get("loss") for entry in trainer.state.log_history] for trainer in logs)
    assert one == other
    assert sorted(path.name for path in (tmp_path / "b" / "dtme").iterdir()) == sorted(
        f"report-{step}.{kind}" for step in (2, 4, 6, 8) for kind in ("json", "txt")
    )
    assert dtme.ConflictReport.load(tmp_path / "b" / "dtme" / "report-4.json").tasks == TASKS


def test_report_plan_and_losses_are_kept(tmp_path: Path):
    model = TwoTasks()
    trainer = trained(tmp_path, model, expanding(plan="recommended", loss_weights=model.loss_weights))
    report = dtme.ConflictReport.load(tmp_path / "dtme" / f"report-{AT}.json")
    assert dtme.Plan.load(tmp_path / "dtme" / f"plan-{AT}.json") == report.recommended() == dtme.plan_of(model)
    even = report.even_weights()
    assert model.loss_weights.values.tolist() == pytest.approx([even[task] for task in TASKS])
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all({"loss/kind", "loss/size"} < entry.keys() for entry in history)
    first = history[0]  # before the weights were set
    assert first["loss"] == pytest.approx(first["loss/kind"] + first["loss/size"], rel=1e-4)
    told = json.loads((tmp_path / f"checkpoint-{AT}" / "dtme.json").read_text())
    assert dtme.Plan.from_dict(told["plan"]) == dtme.plan_of(model)
    assert json.loads((tmp_path / "checkpoint-1" / "dtme.json").read_text())["plan"] is None
    again = dtme.resume(TwoTasks(), tmp_path / f"checkpoint-{AT}")
    assert dtme.plan_of(again) == dtme.plan_of(model)


def test_the_reporters_of_trainer_get_the_map_and_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    watch = Watch(task_losses, own_batches(), every=4)
    trained(tmp_path, TwoTasks(), watch, report_to="tensorboard", save_strategy="no", logging_steps=4)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {f"conflict/range/{BLOCK(1)}", "even_weight/kind", "analysis/loss/size", "train/loss/kind"} <= set(scalars)
    assert [event.step for event in events.Scalars("gradient_size/kind")] == [4, 8]
    assert events.Tags()["images"] == ["conflict/map"]
    assert any("report.txt" in tag for tag in events.Tags()["tensors"])
    assert not isinstance(watch.trackers[0], WandB)


def test_an_expansion_before_the_first_step(tmp_path: Path):
    model = TwoTasks()
    trained(tmp_path, model, Expand(at=0, plan=PLAN), save_strategy="no", max_steps=2)
    assert dtme.plan_of(model) == PLAN


def test_an_optimizer_without_the_group_is_refused_at_the_start(tmp_path: Path):
    model = TwoTasks()
    optimizer = torch.optim.AdamW(model.parameters())
    trainer = Trainer(
        model, arguments(tmp_path), train_dataset=Words(), callbacks=[expanding()], optimizers=(optimizer, None)
    )
    with pytest.raises(ValueError, match=r"Expand: this \w+ has no group .*dtme\.parameter_groups"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_loss_weights_outside_of_the_model_are_refused_at_the_start(tmp_path: Path):
    other = TwoTasks().loss_weights
    with pytest.raises(ValueError, match="loss_weights is no module of the model"):
        trained(tmp_path, TwoTasks(), expanding(plan="recommended", loss_weights=other))


def test_the_trainer_s_own_loader_is_refused(tmp_path: Path):
    model = TwoTasks()
    trainer = Mixed(model, arguments(tmp_path), train_dataset=Words())
    with pytest.raises(ValueError, match="a loader that accelerate has prepared"):
        Watch(task_losses, trainer.get_train_dataloader(), every=1)


def test_a_model_that_is_made_by_trainer_resumes(tmp_path: Path):
    def run(seed: int, resume: Any) -> nn.Module:
        trainer = Mixed(
            args=arguments(tmp_path), model_init=lambda: TwoTasks(seed), train_dataset=Words(), callbacks=[expanding()]
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model

    undisturbed = run(0, None)
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}")
    assert_same(run(7, True).state_dict(), undisturbed.state_dict())


def test_checkpoints_of_a_training_without_the_callback_are_explained(tmp_path: Path):
    """Saved with inserts and nothing that brings their plan: the next one that loads them says so."""
    model = dtme.apply(TwoTasks(), PLAN)
    trainer = Trainer(model, arguments(tmp_path, max_steps=1), train_dataset=Words())
    trainer.train()
    again = Mixed(TwoTasks(), arguments(tmp_path), train_dataset=Words(), callbacks=[expanding()])
    with (
        pytest.warns(UserWarning, match=r"holds inserts that this model has no place for .*dtme\.resume"),
        pytest.raises(ValueError, match="a different number of parameter groups"),
    ):
        again.train(resume_from_checkpoint=True)
