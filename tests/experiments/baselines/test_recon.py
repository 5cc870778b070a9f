"""Recon: its counts against literal cosines, its choice of layers, and that training goes on as plain training."""

import copy
import itertools

import pytest
import torch
from models import make_batches, task_losses, timm_multitask
from torch import nn
from torch.nn.functional import cosine_similarity

from experiments.baselines import ConflictCount, OwnCopies

TASKS = ("depth", "semseg", "scene", "normals")


def literal_counts(model: nn.Module, batches: list, severity: float, layers: dict[str, list[str]]) -> dict[str, int]:
    """Per layer the pairs whose gradients' cosine is below the severity, one pass per task, all in plain loops."""
    counts = dict.fromkeys(layers, 0)
    for batch in batches:
        rows = {}
        for task in TASKS:
            alone = copy.deepcopy(model)
            task_losses(alone, batch)[task].backward()
            rows[task] = {name: p.grad for name, p in alone.named_parameters()}
        for layer, names in layers.items():
            for a, b in itertools.combinations(TASKS, 2):
                one, other = (torch.cat([rows[task][name].flatten() for name in names]) for task in (a, b))
                counts[layer] += int(cosine_similarity(one, other, dim=0).item() < severity)
    return counts


@pytest.mark.parametrize("severity", [0.0, -0.05])
def test_counts_are_those_of_literal_cosines(severity: float):
    model = timm_multitask(TASKS, seed=0, depth=2).double()
    batches = make_batches(model, (2, 3, 2))
    layers = {"trunk.cls_token": ["trunk.cls_token"], "trunk.pos_embed": ["trunk.pos_embed"]}
    for name, module in model.trunk.named_modules():
        own = [f"trunk.{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
        if own and name:
            layers[f"trunk.{name}"] = own
    expected = literal_counts(model, batches, severity, layers)
    counting = ConflictCount(model, severity)
    for batch in batches:
        counting(model, task_losses(model, batch))
    found = dict(zip(counting.layers, counting.scores.tolist(), strict=True))
    assert {layer: found[layer] for layer in layers} == expected
    assert 0 < sum(expected.values()) < 6 * 3 * len(layers)
    assert all(found[layer] == 0 for layer in found if layer.startswith("heads."))
    assert int(counting.steps) == 3
    ranked = sorted(layers, key=lambda layer: (-expected[layer], counting.layers.index(layer)))
    assert counting.top(4) == ranked[:4]
    assert set(counting.top(len(layers))) == set(layers)
    with pytest.raises(ValueError, match=rf"count=99: {len(layers)} shared layers were met in 3 steps"):
        counting.top(99)


def test_it_trains_as_plain_training_does():
    model = timm_multitask(TASKS, seed=0, depth=2).double()
    plain = copy.deepcopy(model)
    (batch,) = make_batches(model, (2,))
    torch.stack(list(task_losses(plain, batch).values())).sum().backward()
    ConflictCount(model)(model, task_losses(model, batch))
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_the_chosen_layers_become_each_tasks_own():
    model = timm_multitask(TASKS, seed=0, depth=2).double()
    (batch,) = make_batches(model, (2,))
    counting = ConflictCount(model)
    counting(model, task_losses(model, batch))
    names = counting.top(5)
    sizes = {
        name: sum(p.numel() for n, p in model.named_parameters() if (n + ".").startswith(name + ".")) for name in names
    }
    own = OwnCopies(copy.deepcopy(model), TASKS, names)
    assert sum(p.numel() for _, p in own.added_parameters()) == 3 * sum(sizes.values())
    again = ConflictCount(own)
    again(own, task_losses(own, batch))
    shared = {f"model.{layer}" for layer in counting.top(int(counting.shared.sum()))} - {f"model.{n}" for n in names}
    assert set(again.top(int(again.shared.sum()))) == shared  # none of them is shared any more, all others are


@pytest.mark.parametrize("severity", [0.1, -1.0])
def test_the_severity_is_a_cosine_of_conflict(severity: float):
    with pytest.raises(ValueError, match=f"severity={severity}: give a cosine above -1 and up to 0"):
        ConflictCount(nn.Linear(1, 1), severity)
