"""What is found goes to any tracker through three methods; W&B keeps it without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import BLOCK, PLAN, TASKS, TwoTasks, own_batches, task_losses

import dtme
from dtme.integrations import Expand, TensorBoard, Watch


class Kept:
    """A tracker of one's own."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}
        self.figures: list[str] = []
        self.files: dict[str, str] = {}

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.values[step] = dict(values)

    def figure(self, name: str, figure: Any, step: int) -> None:
        self.figures.append(name)

    def file(self, name: str, path: Path, step: int) -> None:
        self.files[name] = path.read_text(encoding="utf-8")


def test_a_tracker_of_ones_own_gets_everything(tmp_path: Path):
    kept, model = Kept(), TwoTasks().eval()
    report = Watch(task_losses, own_batches(), every=2, trackers=[kept], folder=tmp_path).after_step(model, 2)
    assert report is not None
    (values,) = kept.values.values()
    assert values[f"conflict/range/{BLOCK(1)}"] == pytest.approx(float(report.range_score()[1]))
    assert values[f"conflict/null/{BLOCK(2)}/kind-size"] == pytest.approx(float(report.null_rate[2, 0, 1]))
    weights = report.even_weights()
    assert {task: values[f"even_weight/{task}"] for task in TASKS} == pytest.approx(weights)
    with torch.no_grad():
        own = torch.stack([task_losses(model, batch)["size"] for batch in own_batches()]).mean()
    assert values["analysis/loss/size"] == pytest.approx(float(own))
    assert {f"gradient_size/{task}" for task in TASKS} <= values.keys()
    assert kept.figures == ["conflict/map"]
    assert json.loads(kept.files["dtme/report.json"])["tasks"] == list(TASKS)


def test_wandb_keeps_it_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="dtme", dir=str(tmp_path), settings=wandb.Settings(x_disable_stats=True))
    logged: dict[str, Any] = {}
    log = run.log
    monkeypatch.setattr(run, "log", lambda values, step: (logged.update(values), log(values, step=step)))
    model = TwoTasks()
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-2))
    expand = Expand(task_losses, own_batches(), at=1, plan=lambda report: PLAN, trackers=[run], folder=tmp_path)
    assert expand.after_step(model, optimizer, 1) is not None
    run.finish()
    told = logged
    assert 0 <= told[f"conflict/range/{BLOCK(1)}"] <= 1
    assert isinstance(told["conflict/map"], wandb.Image)
    assert (tmp_path / "plan-1.json").is_file()
    assert any(tmp_path.rglob("*.wandb"))


def test_what_is_no_tracker_is_refused(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"trackers: 3 is none\. Give dtme\.integrations\.TensorBoard, WandB, or a class"
    ):
        Watch(task_losses, own_batches(), every=2, trackers=[3])  # pyright: ignore[reportArgumentType]
    assert TensorBoard(tmp_path).writer is not None
