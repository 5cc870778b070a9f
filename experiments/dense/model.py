"""The benchmark's model: a vision transformer from timm and a light convolutional head per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dtme._shapes import Float
from experiments.dense.backbones.recipe import BackboneRecipe
from experiments.dense.multi_task_model import Head, MultiTaskModel
from experiments.dense.recipe import Recipe
from experiments.dense.suite import Task
from experiments.runner.seeds import hash_of


class MultiTaskViT(MultiTaskModel):
    """One trunk, one head per task; a single-task model is one with a single head.

    Example:
        >>> task = Task("depth", 1, torch.nn.functional.l1_loss, lambda: None, "RMSE", "depth")
        >>> model = MultiTaskViT([task], Recipe(size=32, width=16, depth=2, attention_heads=2))
        >>> model(torch.zeros(2, 3, 32, 32))["depth"].shape
        torch.Size([2, 1, 32, 32])
    """

    def __init__(self, tasks: Sequence[Task], recipe: Recipe) -> None:
        super().__init__()
        self.trunk = VisionTransformer(
            img_size=recipe.size,
            patch_size=recipe.patch,
            embed_dim=recipe.width,
            depth=recipe.depth,
            num_heads=recipe.attention_heads,
            mlp_ratio=recipe.mlp_width,
            num_classes=0,
            global_pool="",
        )
        self.heads = nn.ModuleDict()
        self.head_shape = recipe.width, recipe.head_width, recipe.patch
        for task in tasks:
            self.add_task(task)

    def add_task(self, task: Task) -> None:
        """As of `MultiTaskModel`."""
        width, hidden, patch = self.head_shape
        self.heads[task.name] = Head(width, hidden, task.channels, patch)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """A prediction per task, at the resolution of the images."""
        rows, columns = self.trunk.patch_embed.grid_size
        tokens = self.trunk(images)[:, self.trunk.num_prefix_tokens :]
        features = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return {task: head(features) for task, head in self.heads.items()}


def build(
    tasks: Sequence[Task], recipe: Recipe, seed: int, start: Mapping[str, Tensor] | None = None
) -> MultiTaskModel:
    """A model with first weights that depend on the seed alone: a task's head starts the same in every row.

    Args:
        tasks: Whose heads it has.
        recipe: Its shape.
        seed: Of the first weights.
        start: Weights trained before, named as in a model of all tasks: of a trunk, or of trunk and heads.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _empty(recipe, [task.name for task in tasks])
        for task in tasks:
            torch.manual_seed(hash_of(seed, task.name))
            model.add_task(task)
    if start is not None:
        model.load_state_dict({name: start.get(name, first) for name, first in model.state_dict().items()})
    return model


def _empty(recipe: Recipe, tasks: Sequence[str]) -> MultiTaskModel:
    """A model without what is a task's own."""
    if isinstance(recipe, BackboneRecipe):
        from experiments.dense.backbones.models import empty_model

        return empty_model(recipe, tasks)
    return MultiTaskViT([], recipe)
