"""What became of each task stands beside what the analysis said of it, and nothing is mixed up on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dtme.report.report import ConflictReport
from experiments.runner.jsonl import write_lines
from experiments.studies.suffering import main
from experiments.tables.doc_tables import table_of


def report(rate: float, size: float) -> ConflictReport:
    """Of one block and three tasks: a and b conflict at `rate`, c with nobody; a's gradients are `size` times b's and c's."""
    pairs = torch.zeros(1, 3, 3, dtype=torch.float64)
    pairs[0, 0, 1] = pairs[0, 1, 0] = rate
    none = torch.zeros_like(pairs)
    return ConflictReport(
        ("a", "b", "c"),
        ("block",),
        range_rate=pairs,
        null_rate=none,
        range_halfwidth=none,
        null_halfwidth=none,
        variance_ratio=100.0,
        level=0.95,
        gradient_size=torch.tensor([[size, 1.0, 1.0]], dtype=torch.float64),
        range_chance=torch.full_like(pairs, 0.5),
        null_chance=torch.full_like(pairs, 0.25),
        widths=(8,),
        range_rank=(4,),
        samples=1,
        pairing=(("", "all", "all"), ("all", "", "all"), ("all", "all", "")),
        zero_share=(0.0,),
        undecided=("block",),
    )


def test_gains_rates_and_sizes_are_means_over_seeds(tmp_path: Path):
    runs = []
    for seed, (gain, rate, size) in enumerate([(1.0, 0.4, 8.0), (3.0, 0.6, 8.0)]):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        report(rate, size).save(folder / "report.json")
        figures = {
            "metrics": {},
            "parameters_added": 0,
            "parameters_added_percent": 0.0,
            "step_cost": 1.0,
            "inference_cost": 1.0,
        }
        rows = [
            {"method": "ST", **figures, "gains": dict.fromkeys("abc", 0.0)},
            {"method": "MT", **figures, "gains": {"a": gain, "b": -gain, "c": 0.0}},
        ]
        runs.append({"suite": "s", "tasks": [], "settings": {"seed": seed}, "rows": rows})
    write_lines(tmp_path / "results.jsonl", runs)
    main(tmp_path, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["seeds"] == [0, 1]
    assert found["by_task"]["a"] == {"gain": 2.0, "rate": 0.25, "size": pytest.approx(4.0)}
    assert found["by_task"]["c"] == {"gain": 0.0, "rate": 0.0, "size": pytest.approx(0.5)}
    assert found["by_block"]["block"]["range_score"] == pytest.approx(0.167)
    assert found["by_block"]["block"]["null_chance_score"] == 0.25
    assert found["undecided"] == [["block"], ["block"]]
    assert "| b | -2.0 | 0.250 | 0.50 |" in table_of(tmp_path / "found.json")
