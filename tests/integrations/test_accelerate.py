"""accelerate: resumed at any step as if it had never stopped, trackers, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from loops import BLOCK, PLAN, TwoTasks, Words, assert_same, own_batches, task_losses
from torch import Tensor
from torch.utils.data import DataLoader

import dtme
from dtme.integrations import Expand, Watch
from dtme.integrations.accelerate import checkpoint_plan, trackers_of

STEPS, AT = 8, 3


@pytest.fixture(autouse=True)
def fresh_states() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def trained(
    folder: Path, *, seed: int = 0, resume: int | None = None, calls: Any = (), accumulation: int = 1, save: bool = True
) -> dict[str, Tensor]:
    """A loop as people write it; `calls` come after each step."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    torch.manual_seed(seed)
    model: Any = TwoTasks(seed)
    optimizer: Any = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-2, weight_decay=0.1))
    schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS * accumulation)
    loader = DataLoader(Words(), batch_size=4)
    model, optimizer, schedule, loader = accelerator.prepare(model, optimizer, schedule, loader)
    checkpoint_plan(accelerator, model, optimizer)
    step = 0
    if resume is not None:
        accelerator.load_state(str(folder / str(resume)))
        step = resume
    batches = [batch for _ in range(3) for batch in Words_batches()]
    model.train()
    for batch in batches[step * accumulation : STEPS * accumulation]:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            step += 1
            for call in calls:
                call(model, optimizer, step)
            if save and resume is None:
                accelerator.save_state(str(folder / str(step)))
    return accelerator.unwrap_model(model).state_dict()


def Words_batches() -> list[dict[str, Tensor]]:  # noqa: N802
    return list(DataLoader(Words(), batch_size=4, generator=torch.Generator()))


def expanding(**others: Any) -> Any:
    return Expand(task_losses, own_batches(), at=AT, **{"plan": lambda report: PLAN, **others}).after_step


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_at_any_step_as_if_it_had_never_stopped(accumulation: int, tmp_path: Path):
    undisturbed = trained(tmp_path, calls=[expanding()], accumulation=accumulation)
    assert any(".dtme." in name for name in undisturbed)
    for step in (1, AT, AT + 1, STEPS - 1):  # before, at and after the expansion
        resumed = trained(tmp_path, seed=7, resume=step, calls=[expanding()], accumulation=accumulation)
        assert_same(resumed, undisturbed)


def test_a_state_of_before_the_expansion_takes_the_plan_out(tmp_path: Path):
    trained(tmp_path, calls=[expanding()])
    accelerator = Accelerator(cpu=True)
    model: Any = TwoTasks()
    optimizer: Any = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-2))
    schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    checkpoint_plan(accelerator, model, optimizer)
    for step, plan in ((STEPS, PLAN), (1, None), (AT, PLAN)):
        accelerator.load_state(str(tmp_path / str(step)))
        assert dtme.plan_of(model) == plan
        held = [id(parameter) for parameter in optimizer.param_groups[-1]["params"]]
        assert held == [id(parameter) for _, parameter in dtme.added_parameters(model)]


def test_a_state_without_help_is_explained(tmp_path: Path):
    trained(tmp_path, calls=[expanding()])
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(TwoTasks())
    with pytest.raises(RuntimeError, match=r"dtme_plan: call dtme\.carry_plan\(model\) before loading"):
        accelerator.load_state(str(tmp_path / str(AT)))


def test_watching_leaves_the_training_unchanged(tmp_path: Path):
    watch = Watch(task_losses, DataLoader(Words(8, seed=1), 4, shuffle=True), every=2, folder=tmp_path / "reports")
    plain = trained(tmp_path, save=False, accumulation=2)
    watched = trained(
        tmp_path, save=False, accumulation=2, calls=[lambda model, optimizer, step: watch.after_step(model, step)]
    )
    assert_same(plain, watched)
    assert len(list((tmp_path / "reports").iterdir())) == 8


def test_its_trackers_get_the_map_and_the_numbers(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    accelerator.init_trackers("run")
    watch = Watch(task_losses, own_batches(), every=1, trackers=trackers_of(accelerator))
    watch.after_step(TwoTasks(), 1)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert events.Tags()["images"] == ["conflict/map"]
    assert {f"conflict/range/{BLOCK(0)}/kind-size", "gradient_size/kind"} <= set(events.Tags()["scalars"])


def test_a_prepared_loader_is_refused():
    loader = Accelerator(cpu=True).prepare(DataLoader(Words(), batch_size=4))
    for batches in (loader, lambda: loader):
        with pytest.raises(ValueError, match="a loader that accelerate has prepared"):
            Watch(task_losses, batches, every=1).after_step(TwoTasks(), 1)
