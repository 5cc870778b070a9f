"""Images per second: what is measured of a small model, and the section of the page that is made of it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dtme
from benchmarks import throughput
from benchmarks.subject import Size

TINY = Size("vit_tiny_patch16_224", pixels=32, samples=2, depth=2, tasks=throughput.TASKS)
SHORT: dict[str, Any] = {"turns": 2, "few": 1, "many": 3, "compiled": False}


def test_a_small_model_is_measured_with_every_plan_and_each_figure_is_handed_out_at_once():
    sizes = [len(found["speeds"]) for found in throughput.measure(TINY, **SHORT)]
    assert sizes == [1, 2, 3, 4, 4]
    *_, last = throughput.measure(TINY, **SHORT)
    found = json.loads(json.dumps(last))
    assert [own["plan"] for own in found["speeds"]] == list(throughput.plans(TINY.model(), TINY.tasks))
    assert all(own["training"] > 0 and own["inference"] > 0 for own in found["speeds"])
    plain, first = (found["speeds"][place]["gigabytes"] for place in (0, 1))
    assert 0 < plain < first  # five streams keep more than one
    assert found["analysis"]["samples"] == 2
    assert found["failed"] == {}
    assert "| nothing (MT) | 2 |" in throughput.section(found)


def test_one_failure_loses_no_other_figure(monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(throughput, "analysis", broken)
    *_, found = throughput.measure(TINY, **SHORT)
    assert len(found["speeds"]) == 4
    assert found["failed"] == {"analysis": "RuntimeError: no such kernel"}
    assert "Not measured, analysis: RuntimeError: no such kernel" in throughput.section(found)


def test_every_figure_is_on_disk_before_the_next_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results/throughput.json"
    kept: list[int] = []
    measured = throughput.speed

    def noted(*args: Any, **kwargs: Any) -> throughput.Speed:
        kept.append(len(json.loads(path.read_text())["speeds"]) if path.exists() else 0)
        return measured(*args, **kwargs)

    monkeypatch.setattr(throughput, "ROOT", tmp_path)
    monkeypatch.setattr(throughput, "speed", noted)
    monkeypatch.setattr(throughput, "analysis", lambda *args, **kwargs: throughput.Analysis(0.01, 1.0, 2))
    asked = "--trunk vit_tiny_patch16_224 --pixels 32 --samples 2 --depth 2 --eager --record"
    monkeypatch.setattr(sys, "argv", ["throughput", *asked.split()])
    assert throughput.main() == 0
    assert kept == [0, 1, 2, 3]
    assert json.loads(path.read_text())["analysis"] == {"per_image": 0.01, "fixed": 1.0, "samples": 2}


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    tried: list[int] = []

    def run(size: Size) -> int:
        tried.append(size.samples)
        if size.samples > 3:
            raise torch.OutOfMemoryError("out of memory")
        return size.samples

    assert throughput.with_what_fits(run, replace(TINY, samples=16)) == 2
    assert tried == [16, 8, 4, 2]

    def never(size: Size) -> int:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        throughput.with_what_fits(never, TINY)


def test_what_is_fixed_is_told_apart_from_what_goes_with_the_images(monkeypatch: pytest.MonkeyPatch):
    read: list[int] = []

    def analyze(model: Any, losses: Any, batches: list[Any], max_samples: int | None) -> None:
        assert max_samples is None
        read.append(len(batches))

    monkeypatch.setattr(dtme, "analyze", analyze)
    monkeypatch.setattr(throughput, "seconds", lambda work: (work(), 5 + 0.25 * 2 * read[-1])[1])
    found = throughput.analysis(TINY, 8, 40, 3, compiled=False)
    assert (found.per_image, found.fixed, found.samples) == (pytest.approx(0.25), pytest.approx(5), 2)
    assert read == [8, 8, 8, 8, 8, 40, 40, 40]  # two to warm up


def test_blocks_compiled_one_by_one_are_analysed_alike():
    torch._dynamo.reset()
    data = [TINY.batch(seed) for seed in range(3)]
    plain, fast = TINY.model(), TINY.model()
    throughput.compile_blocks(fast, backend="aot_eager")
    before, after = (dtme.analyze(model, throughput.in_bfloat16, data) for model in (plain, fast))
    torch.testing.assert_close(after.range_rate, before.range_rate)
    torch.testing.assert_close(after.null_rate, before.null_rate)
    torch._dynamo.reset()


def test_the_section_tells_shares_of_plain_training_and_minutes_beside_the_papers():
    speeds = [
        {"plan": "nothing (MT)", "training": 100.0, "inference": 400.0, "gigabytes": 8.0, "samples": 16},
        {"plan": "TM+TE from the first block", "training": 25.0, "inference": 90.0, "gigabytes": None, "samples": 8},
    ]
    size = {"trunk": "vit_base_patch16_224", "pixels": 512, "samples": 16, "tasks": throughput.TASKS}
    made = {"hardware": "a GPU", "command": "python", "versions": {"torch": "2.14"}, "compiled": True, "failed": {}}
    analysis = {"per_image": 0.01, "fixed": 10.02, "samples": 16}
    text = throughput.section({**made, "size": size, "speeds": speeds, "analysis": analysis})
    assert "forward, backward\nand update" in text
    assert "| nothing (MT) | 16 | 100.0 | 1.00 | 400.0 | 1.00 | 8.00 |" in text
    assert "| TM+TE from the first block | 8 | 25.0 | 0.25 | 90.0 | 0.23 | - |" in text
    assert "reads 100.0 images a second, 16 a batch, and takes 10.0 s besides" in text
    assert "4,998 images, read from memory, in 1.0 minutes. The paper gives 33.5 minutes" in text
    partly = throughput.section({**made, "size": size, "speeds": speeds[1:], "analysis": None})
    assert "| TM+TE from the first block | 8 | 25.0 | - | 90.0 | - | - |" in partly


@pytest.mark.parametrize("plan", ["TM+TE from the first block", "TM+TE from half way", "rank-8 updates, last block"])
def test_plans_give_every_task_something(plan: str):
    made = throughput.plans(TINY.model(), TINY.tasks)[plan]
    assert made is not None
    for placed in (made.modulate, made.expand, made.adapt):
        assert all(tasks == TINY.tasks for tasks in placed.values())
