"""Samplers and batches: shares as published, one order for all processes, resumable, little padding."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch

from experiments.text.data.batches import Drawing, batches, drawn, sentences
from experiments.text.data.samplers import Sampler, probabilities, task_order
from experiments.text.data.suite import Encoded, TextSuite
from experiments.text.data.tasks import classes, number

SIZES = {"small": 20, "middle": 80, "large": 320}


def suite_of(sizes: dict[str, int] = SIZES) -> TextSuite:
    generator = torch.Generator().manual_seed(0)

    def encoded(size: int) -> Encoded:
        lengths = torch.randint(3, 40, (size,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        ids = torch.randint(5, 90, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
        return Encoded(ids, torch.zeros(len(ids), dtype=torch.int8), offsets, torch.arange(size).float())

    tasks = tuple(number(name) for name in sizes)
    train = {name: encoded(size) for name, size in sizes.items()}
    return TextSuite(tasks, train, {}, dict.fromkeys(sizes, (0.0, 1.0)), 0, True)


@pytest.mark.parametrize(
    ("sampler", "progress", "alpha"),
    [
        ("proportional", 0.5, 1.0),
        ("square root", 0.5, 0.5),
        ("temperature", 0.5, 0.1),
        ("round robin", 0.5, 0.0),
        ("annealed", 0.0, 1.0),
        ("annealed", 0.5, 0.6),  # epoch 13 of 25: 1 - 0.8 * 12 / 24
        ("annealed", 0.999, 0.2),
    ],
)
def test_shares_are_the_published_powers_of_the_sizes(sampler: Sampler, progress: float, alpha: float):
    found = probabilities(sampler, [100, 1000, 10], progress=progress)
    weights = [size**alpha for size in (100, 1000, 10)]
    assert found.tolist() == pytest.approx([weight / sum(weights) for weight in weights])


def test_a_temperature_of_one_is_proportional_and_less_is_refused():
    assert torch.equal(probabilities("temperature", [1, 3], temperature=1.0), probabilities("proportional", [1, 3]))
    with pytest.raises(ValueError, match=r"temperature=0\.5: give at least 1"):
        probabilities("temperature", [1, 3], temperature=0.5)
    with pytest.raises(ValueError, match=r"sizes=\[4, 0\]: every task needs"):
        probabilities("square root", [4, 0])


def test_drawn_shares_are_near_the_probabilities():
    counts = task_order("square root", [100, 400, 900], 6000, seed=3).bincount(minlength=3) / 6000
    assert counts.tolist() == pytest.approx([1 / 6, 1 / 3, 1 / 2], abs=0.03)


@pytest.mark.parametrize("kind", ["mixed", "homogeneous"])
@pytest.mark.parametrize("sampler", ["proportional", "annealed", "round robin"])
def test_a_run_that_goes_on_sees_what_it_would_have_seen(kind, sampler: Sampler):
    drawing = Drawing(sampler, kind, batch=4, steps=41, seed=1, pool=8)
    suite = suite_of()
    whole = list(batches(suite, drawing))
    later = list(batches(suite, drawing, start=19))
    assert len(whole) == 41
    for one, other in zip(whole[19:], later, strict=True):
        assert torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])
        assert torch.equal(one.tasks, other.tasks)
    other_seed = list(batches(suite, replace(drawing, seed=2)))
    assert any(not torch.equal(one.targets, two.targets) for one, two in zip(whole, other_seed, strict=True))


@pytest.mark.parametrize("kind", ["mixed", "homogeneous"])
def test_all_processes_see_the_same_tasks_and_share_the_sentences(kind):
    suite = suite_of()
    ranks = [Drawing("square root", kind, batch=3, steps=20, world=2, rank=rank, pool=4) for rank in range(2)]
    alone = Drawing("square root", kind, batch=6, steps=20, pool=4)
    for one, two, both in zip(*(sentences(suite, drawing, 20) for drawing in (*ranks, alone)), strict=True):
        assert sorted([*one, *two]) == sorted(both)
        if kind == "homogeneous":
            assert {task for task, _ in one} == {task for task, _ in two}
            assert len({task for task, _ in both}) == 1
    with pytest.raises(ValueError, match="rank=2: there are the ranks 0 to 1"):
        Drawing(world=2, rank=2)
    with pytest.raises(ValueError, match="batch=0: give at least 1"):
        Drawing(batch=0)


def test_an_epoch_shows_every_sentence_once_and_the_next_in_another_order():
    suite = suite_of({"only": 24})
    seen = [row for step in sentences(suite, Drawing("proportional", batch=8, steps=6, pool=3), 6) for _, row in step]
    first, second = seen[:24], seen[24:]
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second


def test_a_model_of_one_task_sees_the_sentences_that_one_of_all_sees():
    suite = suite_of()
    drawing = Drawing("square root", batch=8, steps=30, pool=6)
    counts = drawn(suite, drawing)
    assert sum(counts) == 8 * 30
    together = [[row for step in sentences(suite, drawing, 30) for t, row in step if t == task] for task in range(3)]
    for place, task in enumerate(suite.tasks):
        assert len(together[place]) == counts[place]
        own = suite.only(task)
        steps = -(-counts[place] // 8)
        alone = [
            row
            for step in sentences(own, Drawing("square root", batch=8, steps=steps, pool=1), steps)
            for _, row in step
        ]
        assert Counter(together[place]) <= Counter(alone)  # the last step of the one may hold a few more


def test_sentences_of_like_length_go_together():
    suite = suite_of()
    padding = {}
    for pool in (1, 16):
        own = list(islice(batches(suite, Drawing("square root", batch=16, steps=32, pool=pool)), 32))
        padding[pool] = sum(int((batch.inputs["attention_mask"] == 0).sum()) for batch in own)
    assert padding[16] < 0.3 * padding[1]


def test_a_batch_holds_what_was_drawn():
    suite = suite_of()
    suite = replace(
        suite, tasks=(*suite.tasks[:2], classes("large", ("a", "b"))), scales={**suite.scales, "middle": (3.0, 2.0)}
    )
    batch = suite.batch([(1, 5), (0, 7), (2, 1)])
    assert batch.tasks.tolist() == [1, 0, 2]
    assert batch.targets.tolist() == [(5 - 3.0) / 2.0, 7.0, 1.0]
    ids, _ = suite.train["middle"].sentence(5)
    assert batch.inputs["input_ids"][0, : len(ids)].tolist() == ids.tolist()
    assert int(batch.inputs["attention_mask"][0].sum()) == len(ids)
    assert not batch.inputs["input_ids"][0, len(ids) :].any()
    own = batch.of_task(0)
    assert own.targets.tolist() == [7.0]
    assert own.inputs["input_ids"].shape == (1, int(batch.inputs["attention_mask"][1].sum()))
