"""Which score tells where an insert helps: scores of blocks at the branch point, against what one insert gains there.

Besides the paper's two rates: by how much they stay below chance, conflict weighted by magnitude, the gradient energy of
modulators that a shared one could not use, the imbalance between the tasks' gradients, and depth, which any score has to beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.measure.capture import capture
from dtme.measure.gradients import compute_token_gradients
from dtme.trunk.blocks import find_blocks
from experiments.dense.branch_point import BranchPoint, analysis_batches, plain_run
from experiments.dense.experiment import Bench
from experiments.dense.training import task_losses, weigh
from experiments.runner.jsonl import rows_of
from experiments.runner.resume import read_state

SCORES = (
    "range rate",
    "null rate",
    "range rate over chance",
    "weighted conflict",
    "energy no shared modulator can use",
    "imbalance",
    "depth",
)


def block_scores(bench: Bench) -> dict[str, Float[Tensor, " blocks"]]:
    """Every score of every block where rows branch off."""
    suite = bench.load()
    report = BranchPoint().measured(bench)
    run = plain_run(bench, suite)
    run.restore(read_state(BranchPoint().start(bench), "cpu"))
    batches = list(analysis_batches(bench, suite))
    found = _of_gradients(run.model, batches, suite.tasks)
    chance = report.range_chance_score()
    assert chance is not None
    return {
        "range rate": report.range_score(),
        "null rate": report.null_score(),
        "range rate over chance": report.range_score() - chance,
        **found,
        "depth": torch.arange(len(report.blocks), dtype=torch.float64),
    }


def _of_gradients(model: nn.Module, batches: Sequence[dict[str, Tensor]], tasks: Any) -> dict[str, Tensor]:
    """The scores that follow from the token gradients of the weighted losses."""
    blocks = find_blocks(model)
    places = {name: place for place, name in enumerate(blocks)}
    against, whole, imbalance = (torch.zeros(len(blocks), dtype=torch.float64) for _ in range(3))
    modulators: list[list[list[Tensor]]] = [[[] for _ in blocks], [[] for _ in blocks]]  # by half of the batches
    model.eval()
    for number, batch in enumerate(batches):
        with capture(blocks, differentiable=True) as caught:
            losses = weigh(task_losses(model, batch, tasks), tasks)
            for name, gradients in compute_token_gradients(losses, caught, number):
                place, entry = places[name], caught.entries[name]
                stacked = torch.stack(list(gradients.values()), 2).double()
                products = conflict_products(stacked)
                against[place] += products.clamp(max=0).neg().sum()
                whole[place] += products.abs().sum()
                sizes = stacked.norm(dim=-1).clamp_min(1e-30)
                imbalance[place] += (sizes.amax(-1) / sizes.amin(-1)).log().mean() / len(batches)
                tokens = entry.valid_samples(entry.of_task(next(iter(gradients)))).detach().double()
                scale, shift = torch.einsum("bnp,bnkp->kp", tokens, stacked), stacked.sum((0, 1))
                modulators[number % 2][place].append(torch.cat([scale, shift], 1))
    halves = [[torch.stack(own).mean(0) for own in half] for half in modulators]
    energy = torch.stack([unshared_energy(one, two) for one, two in zip(*halves, strict=True)])
    named = {"weighted conflict": against / whole, "energy no shared modulator can use": energy}
    return {**named, "imbalance": imbalance}


def conflict_products(gradients: Float[Tensor, "b n tasks p"]) -> Float[Tensor, "b n pairs"]:
    """`g_i . g_j` at every token, for all pairs i < j."""
    products = gradients @ gradients.mT
    first, second = torch.triu_indices(products.shape[-1], products.shape[-1], offset=1)
    return products[..., first, second]


def unshared_energy(one: Float[Tensor, "tasks n"], two: Float[Tensor, "tasks n"]) -> Float[Tensor, ""]:
    """`sum_i |G_i|^2 - |sum_i G_i|^2 / K` of the mean gradients, without bias: each product is between two halves of the data.

    Example:
        >>> apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> float(unshared_energy(apart, apart)), float(unshared_energy(apart.abs(), apart.abs()))
        (2.0, 0.0)
    """
    return (one * two).sum() - (one.sum(0) * two.sum(0)).sum() / len(one)


def correlations(
    scores: Sequence[Mapping[str, Float[Tensor, " blocks"]]],
    runs: Sequence[Mapping[str, Any]],
    arms: Sequence[str],
) -> dict[str, float]:
    """Spearman's rank correlation over the blocks between the mean score and the mean gain over MT of one insert there.

    Args:
        scores: One mapping per seed, from `block_scores`.
        runs: Results with rows of MT and of all arms, one per seed.
        arms: The methods that put one insert into one block, in the order of the blocks.
    """
    from scipy.stats import spearmanr

    plain = rows_of(runs, "MT")
    gains = [
        sum(row["delta_m"] - plain[seed]["delta_m"] for seed, row in rows_of(runs, arm).items()) / len(runs)
        for arm in arms
    ]
    found = {}
    for name in SCORES:
        score = torch.stack([own[name].double() for own in scores]).mean(0)
        correlation, _ = spearmanr(score.numpy(), gains)
        found[name] = float(correlation)  # pyright: ignore[reportArgumentType]  (scipy's own stub says a tuple of anything)
    return found
