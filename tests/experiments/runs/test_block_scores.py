"""Scores of blocks, each against what it is said to be, and how their correlation with gains is taken."""

from dataclasses import replace

import pytest
import torch
from tiny_dense import TINY

from experiments.dense.branch_point import BranchPoint, analysis_batches, plain_run, train_first_steps
from experiments.dense.experiment import Bench
from experiments.dense.pretraining import begin_all
from experiments.dense.training import task_losses, weigh
from experiments.runner.resume import read_state
from experiments.runs.block_scores import SCORES, block_scores, conflict_products, correlations, unshared_energy

RECIPE = replace(TINY, pretrain_steps=3, steps=4)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Bench:
    made = Bench("scenes", RECIPE, tmp_path_factory.mktemp("runs"))
    begin_all(made, lambda done, total: None)
    train_first_steps(made, lambda done, total: None)
    return made


def test_every_score_has_a_value_per_block(bench: Bench):
    scores = block_scores(bench)
    assert tuple(scores) == SCORES
    assert all(score.shape == (RECIPE.depth,) and bool(score.isfinite().all()) for score in scores.values())
    assert scores["depth"].tolist() == [0, 1, 2]
    assert bool(((scores["weighted conflict"] > 0) & (scores["weighted conflict"] < 1)).all())


def test_the_energy_of_modulators_is_that_of_their_own_gradients(bench: Bench):
    """A modulator at a block's entry, made by hand: its gradient is what the token gradients add up to."""
    suite = bench.load()
    run = plain_run(bench, suite)
    run.restore(read_state(BranchPoint().start(bench)))
    run.model.eval()
    place = 1
    scale, shift = torch.ones(RECIPE.width, requires_grad=True), torch.zeros(RECIPE.width, requires_grad=True)
    hook = run.model.trunk.blocks[place].register_forward_pre_hook(lambda block, args: (args[0] * scale + shift,))
    halves = []
    for batch in analysis_batches(bench, suite):
        losses = weigh(task_losses(run.model, batch, suite.tasks), suite.tasks)
        halves.append(
            torch.stack(
                [torch.cat(torch.autograd.grad(loss, (scale, shift), retain_graph=True)) for loss in losses.values()]
            ).double()
        )
    hook.remove()
    found = block_scores(bench)["energy no shared modulator can use"][place]
    torch.testing.assert_close(found, unshared_energy(*halves), rtol=1e-4, atol=1e-12)


def test_products_are_those_of_every_pair():
    gradients = torch.randn(2, 3, 4, 5)
    found = conflict_products(gradients)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    expected = torch.stack([(gradients[:, :, i] * gradients[:, :, j]).sum(-1) for i, j in pairs], -1)
    torch.testing.assert_close(found, expected)


def test_correlation_is_of_means_over_seeds():
    names = [f"block {place}" for place in range(3)]
    rows = {"MT": 0.0, **dict(zip(names, (0.1, 0.3, 0.2), strict=True))}
    runs = [{"seed": s, "rows": [{"method": m, "delta_m": value + s} for m, value in rows.items()]} for s in (0, 1)]
    own = {name: torch.tensor([1.0, 2.0, 3.0]) for name in SCORES} | {"imbalance": torch.tensor([1.0, 3.0, 2.0])}
    found = correlations([own, own], runs, names)
    assert found["depth"] == pytest.approx(0.5)
    assert found["imbalance"] == pytest.approx(1.0)
