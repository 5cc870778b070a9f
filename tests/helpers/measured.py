"""What `dtme.analyze` measured, held against the literal recomputation of `reference`."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from models import EncoderMultitask, TimmMultitask, TinyViT, task_losses

import dtme

Model = TinyViT | TimmMultitask | EncoderMultitask


def block_names(model: Model) -> list[str]:
    if isinstance(model, EncoderMultitask):
        return [f"encoder.layers.{d}" for d in range(len(model.encoder.layers))]
    if isinstance(model, TimmMultitask):
        return [f"trunk.blocks.{d}" for d in range(len(model.trunk.blocks))]
    return [f"blocks.{d}" for d in range(len(model.blocks))]


def rows_dim(model: Model) -> int:
    return int(isinstance(model, EncoderMultitask) and not model.batch_first)


def assert_equals_reference(
    report: dtme.ConflictReport, model: Model, batches: list[dict[str, Any]], variance_ratio: float
) -> None:
    expected = reference.measure(
        model, task_losses, batches, block_names(model), report.tasks, variance_ratio, rows_dim(model)
    )
    assert sorted(report.tasks) == sorted(model.tasks)
    assert list(report.blocks) == block_names(model)
    assert report.samples == expected.samples
    assert [int(m) for m in report.range_rank] == expected.range_rank
    assert [[kind != "disjoint" for kind in row] for row in report.pairing] == expected.shared.tolist()
    close = {"rtol": 0, "atol": 1e-9, "check_dtype": False}
    torch.testing.assert_close(report.range_rate, expected.range_rate, **close)
    torch.testing.assert_close(report.null_rate, expected.null_rate, **close)
    for score, wanted in (
        (report.range_score(), expected.range_score()),
        (report.null_score(), expected.null_score()),
    ):
        assert torch.as_tensor(score).tolist() == pytest.approx(wanted, rel=0, abs=1e-9)
