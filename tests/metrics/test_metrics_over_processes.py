from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing

from dtme.metrics import DepthRMSE, MeanIoU, OptimalDatasetF


def values(rows):
    """Three metrics over some rows of one fixed set of five images."""
    generator = torch.Generator().manual_seed(0)
    score, depth = torch.randn(5, 3, 16, 16, generator=generator), torch.rand(5, 16, 16, generator=generator)
    labels = torch.randint(3, (5, 16, 16), generator=generator)
    edges = (depth > 0.8).float()
    metrics = MeanIoU(3), DepthRMSE(), OptimalDatasetF()
    for row in rows:
        one = slice(row, row + 1)
        metrics[0].update(score[one], labels[one])
        metrics[1].update(depth[one] + score[one, 0] * row, depth[one])
        metrics[2].update(score[one, 0] + edges[one], edges[one])
    return [metric.compute().item() for metric in metrics]


def process(rank, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        (folder / f"{rank}.json").write_text(json.dumps(values([[0, 1, 2], [3, 4]][rank])))
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
    assert alone != pytest.approx(values([0, 1, 2]), rel=1e-2)  # so that a process which kept to its rows would show


def test_dtme_alone_does_not_import_torchmetrics():
    code = "import sys, dtme; sys.exit(any(name in sys.modules for name in ('dtme.metrics', 'torchmetrics', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
