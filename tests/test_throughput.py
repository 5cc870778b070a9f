"""Images per second: what is measured of a small model, and the section of the page that is made of it."""

from __future__ import annotations

import json

import pytest
from benchmarks import throughput
from benchmarks.subject import Size

TINY = Size("vit_tiny_patch16_224", pixels=32, samples=2, depth=2, tasks=throughput.TASKS)


def test_a_small_model_is_measured_with_every_plan():
    found = json.loads(json.dumps(throughput.measure(TINY, turns=2, batches=2, compiled=False)))
    assert [own["plan"] for own in found["speeds"]] == list(throughput.plans(TINY.model(), TINY.tasks))
    assert all(own["training"] > 0 and own["inference"] > 0 for own in found["speeds"])
    plain, first = (found["speeds"][place]["gigabytes"] for place in (0, 1))
    assert 0 < plain < first  # five streams keep more than one
    assert found["analysis"] > 0
    assert "| nothing (MT) |" in throughput.section(found)


def test_the_section_tells_shares_of_plain_training_and_minutes_beside_the_papers():
    speeds = [
        {"plan": "nothing (MT)", "training": 100.0, "inference": 400.0, "gigabytes": 8.0},
        {"plan": "TM+TE from the first block", "training": 25.0, "inference": 90.0, "gigabytes": None},
    ]
    size = {"trunk": "vit_base_patch16_224", "pixels": 512, "samples": 16, "tasks": throughput.TASKS}
    made = {"hardware": "a GPU", "command": "python", "versions": {"torch": "2.14"}, "compiled": True}
    text = throughput.section({**made, "size": size, "speeds": speeds, "analysis": 83.3})
    assert "| nothing (MT) | 100.0 | 1.00 | 400.0 | 1.00 | 8.00 |" in text
    assert "| TM+TE from the first block | 25.0 | 0.25 | 90.0 | 0.23 | - |" in text
    assert "4,998 images in 1.0 minutes. The paper gives 33.5 minutes" in text


@pytest.mark.parametrize("plan", ["TM+TE from the first block", "TM+TE from half way", "rank-8 updates, last block"])
def test_plans_give_every_task_something(plan: str):
    made = throughput.plans(TINY.model(), TINY.tasks)[plan]
    assert made is not None
    for placed in (made.modulate, made.expand, made.adapt):
        assert all(tasks == TINY.tasks for tasks in placed.values())
