"""When the analysis reads no further: with all tasks on the same inputs, and with tasks on inputs of their own."""

import pytest
import torch
from models import Batch, make_batches, task_losses, tiny_vit

import dtme
from dtme.measure import batches as batches_module

TASKS = ("depth", "edges", "semseg")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "MOMENT_SAMPLES", 8)


def own_batches(in_turn: bool) -> list[Batch]:
    """Three batches of each task alone, one task after the other or in turn."""
    order = [*TASKS] * 3 if in_turn else [task for task in TASKS for _ in range(3)]
    return make_batches(tiny_vit(TASKS), (4,) * 9, present=[(task,) for task in order])


@pytest.mark.parametrize("in_turn", [True, False])
def test_tasks_on_inputs_of_their_own_are_read_to_the_end(in_turn: bool):
    model, batches = tiny_vit(TASKS), own_batches(in_turn)
    report = dtme.analyze(model, task_losses, batches, confidence=0.9)
    whole = dtme.analyze(model, task_losses, batches)
    assert report.tasks == whole.tasks
    assert report.samples == whole.samples == 36
    torch.testing.assert_close(report.range_rate, whole.range_rate, rtol=0, atol=0)
    assert report.undecided == report.blocks


def test_a_task_apart_from_others_keeps_the_analysis_reading():
    model = tiny_vit(TASKS)
    together, alone = TASKS[:2], TASKS[2:]
    batches = make_batches(model, (8,) * 80, present=[alone, together, together, together] * 20)
    assert dtme.analyze(model, task_losses, batches, confidence=0.5).samples == 640
    late = make_batches(model, (8,) * 2, present=[together, alone])
    assert set(dtme.analyze(model, task_losses, late, confidence=0.5).tasks) == set(
        TASKS
    )  # it has a branch: waited for


def test_the_first_round_ends_early_where_every_batch_holds_all_tasks():
    model = tiny_vit(TASKS)
    batches, read = make_batches(model, (4,) * 9), []

    def losses(model, batch: Batch):
        read.append(torch.is_grad_enabled())
        return task_losses(model, batch)

    dtme.analyze(model, losses, batches, confidence=0.9)
    assert read.count(False) == 3  # 8 samples, and once more to count FLOPs
    assert read.count(True) == 9


def test_a_cap_that_ends_within_the_first_task_is_named():
    with pytest.raises(
        ValueError, match=r"\['depth'\]: conflicts need .* max_samples=8 may have ended the reading: give batches"
    ):
        dtme.analyze(tiny_vit(TASKS), task_losses, own_batches(in_turn=False), max_samples=8)
