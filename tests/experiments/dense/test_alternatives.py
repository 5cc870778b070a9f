"""What stands in the model's place in a row: that Recon's row copies the layers that conflict most, counted literally."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_dense import TINY
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from experiments.baselines import Balancing
from experiments.dense.alternatives import COUNTED, recon
from experiments.dense.experiment import Bench
from experiments.dense.model import build
from experiments.dense.training import begin
from experiments.training.run import train


class Literal(Balancing):
    """The plain sum; counts pairs below -0.02 layer by layer, from a backward pass per task in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conflicts: dict[str, int] = {}

    def forward(self, model: nn.Module, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = dict(model.named_parameters())
        rows = {
            task: torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
            for task, loss in losses.items()
        }
        layers: dict[str, list[int]] = {}
        for place, name in enumerate(named):
            holder = name.rpartition(".")[0]
            leaf = bool(holder) and not list(model.get_submodule(holder).children())
            if all(own[place] is not None for own in rows.values()):
                layers.setdefault(holder if leaf else name, []).append(place)
        for layer, places in layers.items():
            whole = [torch.cat([own[place].double().flatten() for place in places]) for own in rows.values()]
            below = sum(float(cosine_similarity(one, two, dim=0)) < -0.02 for one, two in combinations(whole, 2))
            self.conflicts[layer] = self.conflicts.get(layer, 0) + below
        for place, parameter in enumerate(named.values()):
            found = [own[place] for own in rows.values() if own[place] is not None]
            parameter.grad = torch.stack(found).sum(0) if found else None
        return dict.fromkeys(losses, torch.ones(()))


def test_recon_copies_the_quarter_of_the_layers_that_conflict_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path / "cache"))
    bench = Bench("scenes", replace(TINY, steps=24), tmp_path, None, 5)
    suite = bench.load()
    model = build(suite.tasks, bench.recipe, bench.seed)
    changed: Any = recon(model, bench, suite)

    literal, again = Literal(), build(suite.tasks, bench.recipe, bench.seed)
    run = begin(again, suite.tasks, suite.train, bench.recipe, seed=5)
    run.balancing = literal
    train(run, int(COUNTED * bench.recipe.steps))
    counts = literal.conflicts
    many = len(counts) // 4
    assert len(changed.names) == len(set(changed.names)) == many
    assert set(changed.names) <= counts.keys()
    assert len(set(counts.values())) > 2
    least = min(counts[name] for name in changed.names)
    assert least >= max(count for name, count in counts.items() if name not in changed.names)
    assert all(not name.startswith("heads") for name in changed.names)
