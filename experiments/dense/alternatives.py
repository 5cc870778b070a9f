"""What the rows of the table do that are no plan: gradients balanced, losses weighted, another model in the model's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from experiments import baselines
from experiments.baselines import Balancing
from experiments.dense.experiment import Bench
from experiments.dense.model import MultiTaskViT, build
from experiments.dense.recipe import Recipe
from experiments.dense.suite import Suite
from experiments.dense.training import begin
from experiments.methods.gradient_cosines import CosineLog
from experiments.runner.cache import cached
from experiments.runner.seeds import hash_of
from experiments.training.run import Run, train

Balancer = Callable[[Suite, Recipe, int], Balancing]
"""From suite, recipe and seed to how the losses become gradients."""
Change = Callable[[MultiTaskViT, Bench, Suite], nn.Module]
"""From the model at the step of insertion to the one that is trained on; it tells its `added_parameters()`."""
COUNTED = 0.25
"""Share of the steps in which Recon counts conflicts, before it trains anew."""


def by(make: Callable[[], Balancing]) -> Balancer:
    """A balancing that depends on nothing."""
    return lambda suite, recipe, seed: make()


def drawing(make: Callable[[int], Balancing]) -> Balancer:
    """A balancing that draws at random."""
    return lambda suite, recipe, seed: make(seed)


def weighing(make: Callable[[tuple[str, ...]], Balancing]) -> Balancer:
    """A balancing that keeps a weight per task."""
    return lambda suite, recipe, seed: make(names_of(suite))


def dwa(suite: Suite, recipe: Recipe, seed: int) -> Balancing:
    """Losses weighted by how fast they fell over the last epochs."""
    return baselines.DWA(names_of(suite), len(suite.train) // recipe.batch)


def looking(suite: Suite, recipe: Recipe, seed: int) -> Balancing:
    """The plain sum, and fifty looks at the tasks' gradients over the training."""
    return CosineLog(every=max(1, recipe.steps // 50))


def wider(added: Callable[[int, int], int]) -> Callable[[Recipe], Recipe]:
    """A recipe whose MLPs are wider by about as many parameters as a method adds, for four tasks.

    Args:
        added: From p and D to the number of parameters.

    Example:
        >>> wider(lambda p, depth: 864)(Recipe(width=24, depth=6)).mlp_width * 24
        99.5
    """

    def recipe(plain: Recipe) -> Recipe:
        hidden = int(plain.mlp_width * plain.width)
        units = max(1, round(added(plain.width, plain.depth) / (plain.depth * (2 * plain.width + 1))))
        return replace(plain, mlp_width=(hidden + units + 0.5) / plain.width)  # the half survives rounding down

    return recipe


def final_affine(model: MultiTaskViT, bench: Bench, suite: Suite) -> nn.Module:
    """A scale and a shift per task behind the trunk."""
    return baselines.FinalAffine(model, names_of(suite), bench.recipe.width, dim=1)


def own_blocks(count: int | None) -> Change:
    """Copies of the last blocks per task; `None` takes as many as the recipe's fraction."""

    def change(model: MultiTaskViT, bench: Bench, suite: Suite) -> nn.Module:
        many = count or max(1, int(bench.recipe.fraction * bench.recipe.depth + 0.5))
        return baselines.branch(model, names_of(suite), many)

    return change


def lora_in_the_last_block(model: MultiTaskViT, bench: Bench, suite: Suite) -> nn.Module:
    """One adapter of peft's LoRA per task, and one pass per adapter."""
    return baselines.LoRAPerTask(model, names_of(suite), rank=4, blocks=[-1])


def recon(model: MultiTaskViT, bench: Bench, suite: Suite) -> nn.Module:
    """Own copies of the layers whose parameter gradients conflict most often, counted over a quarter of the steps.

    A quarter of the layers, about the share that its paper gives each task on PASCAL-Context, S = -0.02.
    """

    def counted() -> dict[str, torch.Tensor]:
        run, counting = counting_run(model, bench, suite)
        train(run, max(1, int(COUNTED * bench.recipe.steps)))
        shared = int(counting.shared.sum())
        top = counting.top(max(1, shared // 4))
        return {"layers": torch.tensor([counting.layers.index(layer) for layer in top])}

    start = hash_of(*(float(weight.double().sum()) for weight in model.state_dict().values()))
    chosen = cached(f"recon/{hash_of(repr(bench.settings()), start):012x}", counted)["layers"]
    layers = baselines.ConflictCount(model).layers
    return baselines.OwnCopies(model, names_of(suite), [layers[place] for place in chosen.tolist()])


def counting_run(model: nn.Module, bench: Bench, suite: Suite) -> tuple[Run, baselines.ConflictCount]:
    """Plain training of a copy of the model in which Recon counts."""
    again = build(suite.tasks, bench.recipe, bench.seed)
    again.load_state_dict(model.state_dict())
    counting = baselines.ConflictCount(again, severity=-0.02)
    run = begin(again, suite.tasks, suite.train, bench.recipe, seed=bench.seed)
    run.balancing = counting
    return run, counting


def names_of(suite: Suite) -> tuple[str, ...]:
    """The names of a suite's tasks."""
    return tuple(task.name for task in suite.tasks)
