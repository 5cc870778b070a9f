"""How many batches are read, and what is no batch: empty ones, one where several are meant, arguments in another order."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from models import Batch, make_batches, task_losses, tiny_vit
from torch import Tensor, nn

import dtme
from dtme.measure import batches as batches_module
from dtme.measure.batches import Limits, Replayed, is_empty

TASKS = ("depth", "edges", "semseg")


class Counted:
    """Batches by number, made when they are read: it counts how many samples were."""

    def __init__(self, present: Callable[[int], tuple[str, ...]] = lambda number: TASKS, batches: int = 400):
        self.model, self.present, self.batches = tiny_vit(TASKS, depth=3), present, batches
        self.rounds: list[int] = []

    def __iter__(self) -> Iterator[Batch]:
        self.rounds.append(0)
        for number in range(self.batches):
            self.rounds[-1] += 8
            yield make_batches(self.model, (8,), present=[self.present(number)], seed=number)[0]


def torn(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Losses that pull the tokens of a sample up or down, by coin flips for each task and block: no choice is settled by them."""
    generator = torch.Generator().manual_seed(int(batch["targets"]["depth"].sum() * 1e6) % 2**31)
    first = model.blocks[0](model.embed(*batch["inputs"]))  # type: ignore[index,operator]
    second = model.blocks[1](first)  # type: ignore[index]
    third = model.blocks[2](second)  # type: ignore[index]
    means = torch.stack([9 * first.mean((1, 2)), 3 * second.mean((1, 2)), third.mean((1, 2))])
    return {task: (means * (torch.randint(2, means.shape, generator=generator) - 0.5)).sum() for task in TASKS}


def analyze(batches: Any, losses: Any = task_losses, **options: Any) -> dtme.ConflictReport:
    return dtme.analyze(batches.model, losses, batches, **options)


def test_the_default_reads_no_more_than_512_samples_and_says_so(caplog: pytest.LogCaptureFixture):
    batches = Counted()
    with caplog.at_level(logging.INFO, logger="dtme"):
        report = analyze(batches, torn)
    assert batches.rounds == [192, 512]
    assert report.samples == 512
    note = "Read: 192 samples for the token space, 512 for conflicts, the default; max_samples=None reads all."
    assert report.notes[0] == note
    assert note in str(report)
    assert caplog.messages == ["analyze reads batches twice, up to the default, 512 samples or a settled choice"]


def test_the_default_stops_where_the_choice_is_settled():
    def clear(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        tokens: Any = model.blocks[0](model.embed(*batch["inputs"]))  # type: ignore[index,operator]
        tokens = model.blocks[1](tokens)  # type: ignore[index]
        late = model.blocks[2](tokens).mean()  # type: ignore[index]
        return {
            "depth": 50 * tokens.mean() + late,
            "edges": 50 * tokens.mean() - late,
            "semseg": 40 * tokens.mean() + late,
        }

    batches = Counted()
    report = analyze(batches, clear)
    assert batches.rounds == [192, report.samples]
    assert 16 <= report.samples < 512
    assert report.undecided == ()
    assert "until the choice of blocks was settled at 95%" in report.notes[0]


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        ({"max_samples": None}, [640, 640]),
        ({"max_samples": 24}, [24, 24]),
        ({"confidence": 0.95}, [192, 640]),
        ({"confidence": 0.95, "max_samples": 320}, [192, 320]),
    ],
)
def test_what_is_asked_for_is_read(options: dict[str, Any], rounds: list[int]):
    batches = Counted(batches=80)
    report = analyze(batches, torn, **options)
    assert batches.rounds == rounds
    assert report.samples == rounds[1]


def test_of_tasks_that_share_no_inputs_the_default_reads_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches_module, "SAMPLES", 32)
    one_by_one = Counted(lambda number: (TASKS[number % 3],))
    report = analyze(one_by_one)
    assert one_by_one.rounds == [96, 96]
    assert report.samples == 96
    sorted_ = Counted(lambda number: (TASKS[min(number // 10, 2)],))
    assert analyze(sorted_).tasks == TASKS  # each has a branch, and so is waited for
    assert sorted_.rounds[0] == 192
    late = Counted(lambda number: TASKS[:2] if number < 60 else TASKS)
    assert analyze(late, tasks=TASKS).tasks == TASKS  # named, and so waited for
    assert late.rounds == [488, 496]  # two batches of it at least


def test_a_task_that_the_second_round_misses_is_named():
    shuffled = Counted(lambda number: TASKS if len(shuffled.rounds) == 1 else TASKS[:2])
    with pytest.raises(ValueError, match="the 24 samples compared hold none of task 'semseg': read more"):
        analyze(shuffled, max_samples=24)


def test_a_task_that_comes_when_the_first_round_is_over_is_an_error_that_names_the_way_out():
    late = Counted(lambda number: TASKS[:2] if number < 70 else TASKS)  # behind the 512 samples that a branch waits for
    with pytest.raises(ValueError, match=r"'semseg' .*unknown in the first: .* Name the tasks, tasks=\[\.\.\.\]"):
        analyze(late, confidence=0.9999)
    report = analyze(late, torn_of_two)
    assert report.tasks == TASKS[:2]
    assert "'semseg': a branch in the model, but no loss in what was read" in " ".join(report.notes)


def torn_of_two(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    losses = torn(model, batch)
    return {task: losses[task] for task in TASKS[:2]}


def test_limits():
    assert Limits.of(None, "auto").default
    assert not Limits.of(0.9, 12).default
    for wrong in ("all", 0, -3):
        with pytest.raises(ValueError, match=rf"max_samples={wrong!r}: give at least 1, None for all"):
            Limits.of(None, wrong)  # type: ignore[arg-type]


def test_what_can_be_read_only_once_is_kept_as_far_as_the_first_round_reads_it():
    drawn, batches = [], Counted()

    def endless() -> Iterator[Batch]:
        for number in itertools.count():
            drawn.append(number)
            yield make_batches(batches.model, (8,), seed=number)[0]

    report = dtme.analyze(batches.model, torn, endless())
    assert len(drawn) == 64
    assert report.samples == 512
    again = Replayed(iter(range(9)))
    assert list(itertools.islice(again, 4)) == [0, 1, 2, 3]
    assert list(again) == list(range(9))
    assert again._kept == [0, 1, 2, 3]


def test_batches_without_samples_are_skipped():
    model = tiny_vit(TASKS)
    batches = make_batches(model, (3, 2))
    (empty,) = make_batches(model, (1,))
    empty = {"inputs": (empty["inputs"][0][:0],), "targets": {task: t[:0] for task, t in empty["targets"].items()}}
    whole = dtme.analyze(model, task_losses, batches)
    report = dtme.analyze(model, task_losses, [empty, batches[0], empty, batches[1], empty])
    assert torch.equal(report.range_rate, whole.range_rate)
    assert report.samples == 5
    assert report.notes[0].endswith("Skipped: 3 batches without samples.")
    with pytest.raises(ValueError, match="none of the 2 batches holds a sample"):
        dtme.analyze(model, task_losses, [empty, empty])


def test_what_holds_no_sample():
    assert is_empty({"x": torch.zeros(0, 3), "y": [torch.zeros(0)]})
    assert not is_empty({"x": torch.zeros(0, 3), "y": torch.zeros(2)})  # some samples without labels, say
    assert not is_empty({"scale": torch.tensor(1.0), "name": "nothing to count by"})
    assert not is_empty("text")


IMAGES, LABELS = torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        (IMAGES, r"batches is one batch, a tensor of shape \(4, 3, 8, 8\)"),
        ({"image": IMAGES, "depth": LABELS}, "batches is one batch, a dict with 'image', 'depth'"),
        ((IMAGES, LABELS), "batches is one batch, a tuple of 2 tensors"),
        (torch.utils.data.TensorDataset(IMAGES, LABELS), "a data set .TensorDataset., which gives single samples"),
        (lambda: iter([IMAGES]), "a function. A generator function. Call it"),
        (7, "batches=7 is a int, which cannot be iterated"),
    ],
)
def test_what_is_no_iterable_of_batches(batches: Any, says: str):
    for kind in (TypeError, ValueError):
        with pytest.raises(kind, match=says):
            dtme.analyze(tiny_vit(TASKS), task_losses, batches)


def test_arguments_in_another_order():
    model: nn.Module = tiny_vit(TASKS)
    batches = make_batches(model, (2,))  # type: ignore[arg-type]
    wrong: Any = dtme.analyze
    with pytest.raises(TypeError, match=r"model is a function, no module.*in another order\?"):
        wrong(task_losses, model, batches)
    with pytest.raises(TypeError, match=r"task_losses is a list, which cannot be called.*in another order\?"):
        wrong(model, batches, task_losses)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_off_around_an_analysis_do_no_harm(mode: Any):
    model = tiny_vit(TASKS)
    batches = make_batches(model, (3, 2))
    expected = dtme.analyze(model, task_losses, batches)
    with mode():
        within = dtme.analyze(model, task_losses, batches)
        made = [{"inputs": tuple(x + 0 for x in batch["inputs"]), "targets": batch["targets"]} for batch in batches]
        from_within = dtme.analyze(model, task_losses, (made[place] for place in range(2)))
    of_made = dtme.analyze(model, task_losses, made)
    for found in (within, from_within, of_made):
        assert torch.equal(found.range_rate, expected.range_rate)
        assert torch.equal(found.null_rate, expected.null_rate)
    assert not within.range_rate.is_inference()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_features_made_within_inference_mode_may_enter_the_first_block():
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.heads = tiny_vit(TASKS).blocks, nn.ModuleDict({task: nn.Linear(16, 1) for task in TASKS})

        def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            for block in self.blocks:
                tokens = block(tokens)
            return {task: head(tokens).square().mean() for task, head in self.heads.items()}

    model, tokens = Features(), torch.randn(3, 5, 16)
    with torch.inference_mode():
        made = tokens + 0
    expected, found = (dtme.analyze(model, lambda model, batch: model(batch[0]), [(own,)]) for own in (tokens, made))
    assert torch.equal(found.range_rate, expected.range_rate)


def test_a_model_made_within_inference_mode_is_named():
    batches = make_batches(tiny_vit(TASKS), (2,))
    with torch.inference_mode():
        made = tiny_vit(TASKS)
    with pytest.raises(ValueError, match=r"parameter 'class_token' was made within torch\.inference_mode\(\)"):
        dtme.analyze(made, task_losses, batches)


def test_a_model_without_numbers_is_named():
    with torch.device("meta"):
        model = nn.ModuleDict({"trunk": nn.TransformerEncoderLayer(8, 2), "heads": nn.Linear(8, 2)})
    with pytest.raises(ValueError, match=r"parameter 'trunk\..*' is on the meta device, which holds no numbers"):
        dtme.analyze(model, task_losses, [IMAGES])
