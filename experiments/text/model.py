"""One pretrained encoder, one light head per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dtme._shapes import Float, Int
from experiments.runner.seeds import hash_of
from experiments.text.data.tasks import TextTask
from experiments.text.trunk import load_trunk

Pooling = Literal["mean", "first"]


class Head(nn.Module):
    """Tokens to a prediction: pooled, then one linear layer.

    Autocast is left outside: two scores that bfloat16 cannot tell apart would be a coin toss between classes.

    Args:
        width: Channels p of the tokens.
        outputs: Channels of the prediction.
        pooling: `"mean"` over the tokens that are no padding, or the `"first"` token.
        dropout: Share of the pooled channels that are dropped in training.
    """

    def __init__(self, width: int, outputs: int, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.predict = nn.Linear(width, outputs)

    def forward(self, tokens: Float[Tensor, "b n p"], mask: Int[Tensor, "b n"]) -> Float[Tensor, "b outputs"]:
        """The prediction of every row; `mask` is 1 where a token is no padding."""
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.to(self.predict.weight.dtype)
            if self.pooling == "first":
                pooled = tokens[:, 0]
            else:
                weights = mask.unsqueeze(-1).to(tokens.dtype)
                pooled = (tokens * weights).sum(1) / weights.sum(1)
            return self.predict(self.dropout(pooled))


class TextMultitask(nn.Module):
    """A trunk and a head per task; every head sees every row, and a row counts for the head of its own task.

    Args:
        trunk: A Hugging Face encoder.
        tasks: Whose heads it has.
        pooling: How a head reads the tokens.
        dropout: Before the heads.
    """

    def __init__(
        self, trunk: nn.Module, tasks: Sequence[TextTask], *, pooling: Pooling = "mean", dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.trunk = trunk
        config: Any = trunk.config
        width = getattr(config, "hidden_size", None) or config.dim  # DistilBERT's word for it
        self.heads = nn.ModuleDict({task.name: Head(width, task.outputs, pooling, dropout) for task in tasks})

    def forward(
        self,
        input_ids: Int[Tensor, "b n"],
        attention_mask: Int[Tensor, "b n"],
        token_type_ids: Int[Tensor, "b n"] | None = None,
    ) -> dict[str, Tensor]:
        """A prediction per task: scores of its classes, or its number on unit scale."""
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = self.trunk(input_ids=input_ids, attention_mask=attention_mask, **segments).last_hidden_state
        return {task: head(tokens, attention_mask) for task, head in self.heads.items()}


def build(trunk: str, tasks: Sequence[TextTask], seed: int, *, pooling: Pooling = "mean") -> TextMultitask:
    """A model with a pretrained trunk, and heads whose first weights depend on the seed and their task's name alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextMultitask(load_trunk(trunk), tasks, pooling=pooling)
        for task in tasks:
            head: Any = model.heads[task.name]
            torch.manual_seed(hash_of(seed, "head", task.name))
            nn.init.normal_(head.predict.weight, std=0.02)
            nn.init.zeros_(head.predict.bias)
    return model
