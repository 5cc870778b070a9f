"""The file beside a checkpoint, by which a fresh model gets the plan that the checkpoint's weights are for."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_batches, task_losses, timm_multitask

import dtme

TASKS = ("depth", "semseg", "scene")
BLOCK = "trunk.blocks.{}".format
PLAN = dtme.Plan(TASKS, {BLOCK(2): TASKS}, {BLOCK(3): ("semseg",)}, {BLOCK(3): ("depth", "scene")}, rank=2)


def test_a_folder_without_a_plan_changes_nothing(tmp_path: Path):
    model = timm_multitask(TASKS)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert dtme.resume(model, tmp_path) is model
    assert dtme.resume(model, None) is model
    assert dtme.plan_of(model) is None
    (tmp_path / "config.json").write_text("no JSON")
    dtme.resume(model, tmp_path)
    with pytest.raises(ValueError, match=r"resume\(folder=.*there is no such folder"):
        dtme.resume(model, tmp_path / "nowhere")


def test_the_plan_of_a_folder_is_applied_once(tmp_path: Path):
    dtme.save_plan(dtme.apply(timm_multitask(TASKS), PLAN), tmp_path / "run")
    for folder in (tmp_path / "run", str(tmp_path / "run")):
        model = dtme.resume(timm_multitask(TASKS), folder)
        added = dict(dtme.added_parameters(model))
        assert dtme.plan_of(dtme.resume(model, folder)) == PLAN
        assert all(parameter is added[name] for name, parameter in dtme.added_parameters(model))


def test_one_that_says_there_was_none_takes_it_out(tmp_path: Path):
    dtme.save_plan(dtme.apply(timm_multitask(TASKS), PLAN), tmp_path)
    dtme.save_plan(timm_multitask(TASKS), tmp_path)
    model = dtme.apply(timm_multitask(TASKS), PLAN)
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))
    dtme.resume(model, tmp_path, optimizer=optimizer)
    assert dtme.plan_of(model) is None
    assert optimizer.param_groups[-1]["params"] == []


def test_what_save_pretrained_wrote_is_read_too(tmp_path: Path):
    model = dtme.apply(timm_multitask(TASKS), PLAN, branches={task: f"heads.{task}" for task in TASKS})
    dtme.save_pretrained(model, tmp_path)
    assert dtme.plan_of(dtme.resume(timm_multitask(TASKS), tmp_path)) == PLAN


@pytest.mark.parametrize("spoil", ["{", "[]", '{"format": "dtme.plan", "version": 1}'])
def test_a_damaged_file_is_told_and_changes_nothing(spoil: str, tmp_path: Path):
    (tmp_path / "dtme.json").write_text(spoil)
    model = timm_multitask(TASKS)
    with pytest.raises(ValueError, match=r"dtme\.json"):
        dtme.resume(model, tmp_path)
    assert dtme.plan_of(model) is None


def test_it_is_plain_data(tmp_path: Path):
    dtme.save_plan(dtme.apply(timm_multitask(TASKS), PLAN), tmp_path)
    found = json.loads((tmp_path / "dtme.json").read_text())
    assert (found["format"], found["version"], found["at"], found["branches"]) == ("dtme.applied", 1, "", None)
    assert dtme.Plan.from_dict(found["plan"]) == PLAN


STEPS, AT = 9, 4


class OwnLoop:
    """A loop as people write it, with dropout, a schedule and a checkpoint at every step."""

    def __init__(self, folder: Path, *, carries: bool, resumed: int | None = None) -> None:
        torch.manual_seed(0 if resumed is None else 99)
        self.model: Any = timm_multitask(TASKS, seed=0 if resumed is None else 5)
        for block in self.model.trunk.blocks:
            block.attn.proj_drop.p = 0.2
        self.folder, self.carries = folder, carries
        saved = None if resumed is None else torch.load(folder / str(resumed) / "state.pt", weights_only=True)
        if carries:
            dtme.carry_plan(self.model)
        elif resumed is not None:
            dtme.resume(self.model, folder / str(resumed))
        if saved is not None:
            self.model.load_state_dict(saved["model"])
        self.optimizer = torch.optim.AdamW(dtme.parameter_groups(self.model, lr=1e-2))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, [1e-2, 3e-2], total_steps=STEPS + 1)
        if saved is not None:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.schedule.load_state_dict(saved["schedule"])
            torch.set_rng_state(saved["random"])
        self.start = resumed or 0

    def run(self, save: bool = False) -> dict[str, torch.Tensor]:
        batches = make_batches(timm_multitask(TASKS), [2] * STEPS)
        self.model.train()
        for step in range(self.start, STEPS):
            if step == AT:
                dtme.expand(self.model, self.optimizer, PLAN)
            torch.stack(list(task_losses(self.model, batches[step]).values())).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            if save:
                self.save(step + 1)
        return self.model.state_dict()

    def save(self, step: int) -> None:
        folder = self.folder / str(step)
        folder.mkdir()
        state = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        told = {name: part.state_dict() for name, part in state.items()}
        torch.save(copy.deepcopy({**told, "random": torch.get_rng_state()}), folder / "state.pt")
        if not self.carries:
            dtme.save_plan(self.model, folder)


@pytest.mark.parametrize("carries", [True, False], ids=["in the state dict", "beside it"])
def test_an_own_loop_resumes_at_any_step_as_if_it_had_never_stopped(carries: bool, tmp_path: Path):
    undisturbed = OwnLoop(tmp_path, carries=carries).run(save=True)
    assert any(".dtme." in name for name in undisturbed)
    for step in range(1, STEPS):
        resumed = OwnLoop(tmp_path, carries=carries, resumed=step).run()
        assert resumed.keys() == undisturbed.keys()
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in undisturbed.items()), step
