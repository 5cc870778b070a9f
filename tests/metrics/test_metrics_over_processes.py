from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing

from dtme.metrics import RMSE, DepthRMSE, L1Error, MaxF, MeanAngularError, MeanIoU, OptimalDatasetF


def values(rows):
    """All metrics by both protocols over some rows of one fixed set of five images."""
    generator = torch.Generator().manual_seed(0)
    score, depth = torch.randn(5, 3, 16, 16, generator=generator), torch.rand(5, 16, 16, generator=generator)
    labels, normals = torch.randint(3, (5, 16, 16), generator=generator), torch.randn(score.shape, generator=generator)
    edges = (depth > 0.8).float()
    computed = []
    for protocol in ("standard", "invpt"):
        metrics = [
            (
                MeanIoU(4, protocol=protocol),
                score.new_tensor([1, 1, 1, 0]).view(4, 1, 1) * score[:, [0, 1, 2, 0]],
                labels,
            ),
            (DepthRMSE(protocol=protocol), depth + score[:, 0] * torch.arange(5)[:, None, None], depth),
            (MeanAngularError(protocol=protocol), score, normals),
            (MaxF(protocol=protocol), score[:, 1] + edges, edges),
            (OptimalDatasetF(protocol=protocol, min_distance=1.0), score[:, 0] + edges, edges),
            (
                L1Error(protocol=protocol),
                score,
                normals.where(depth[:, None] > 0.1 * torch.arange(5)[:, None, None, None], torch.nan),
            ),
            (RMSE(protocol=protocol), score, normals.where(depth[:, None] > 0.3, torch.nan)),
        ]
        for metric, prediction, target in metrics:
            for row in rows:
                metric.update(prediction[row : row + 1], target[row : row + 1])
            computed.append(metric.compute().item())
    return computed


def process(rank, folder, shares=([0, 1, 2], [3, 4])):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        (folder / f"{rank}.json").write_text(json.dumps(values(shares[rank])))
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this build of torch has no torch.distributed")
def test_two_processes_agree_with_one(tmp_path):
    other = multiprocessing.get_context("spawn").Process(target=process, args=(1, tmp_path))
    other.start()
    process(0, tmp_path)
    other.join()
    alone = values(range(5))
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(alone, rel=1e-6)
    # So that a process which kept to its rows would show in each.
    assert all(abs(one - other) > 1e-3 * one for one, other in zip(alone, values([0, 1, 2]), strict=True))


@pytest.mark.skipif(not distributed.is_available(), reason="this build of torch has no torch.distributed")
def test_a_process_without_images_changes_nothing(tmp_path):
    other = multiprocessing.get_context("spawn").Process(target=process, args=(1, tmp_path, [list(range(5)), []]))
    other.start()
    process(0, tmp_path, [list(range(5)), []])
    other.join()
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(values(range(5)), rel=1e-6)


def test_dtme_alone_does_not_import_torchmetrics():
    code = "import sys, dtme; sys.exit(any(name in sys.modules for name in ('dtme.metrics', 'torchmetrics', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
