"""The method once more, to the letter: float64, one task, one block, one token at a time, and no library code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import torch
from models import EncoderMultitask, TimmMultitask, TinyViT
from torch import Tensor, nn

from dtme._shapes import Bool, Float

TaskLosses = Callable[[nn.Module, Any], Mapping[str, Tensor]]
Inserts = Mapping[str, Mapping[str, Sequence[str]]]
"""What is inserted: `modulate` and `expand`, each a block name to the tasks served there, in order."""


# Token space (METHOD section 1) ------------------------------------------------------------------------------------


@dataclass
class Sample:
    """One sample at one block.

    Attributes:
        tokens: The tokens that enter the block.
        valid: False at padding.
        gradient: Per task, dL_i/dT; zero where the task has no loss on this sample.
    """

    tokens: Float[Tensor, "n p"]
    valid: Bool[Tensor, " n"]
    gradient: dict[str, Float[Tensor, "n p"]]


def second_moment(samples: Sequence[Sample]) -> Float[Tensor, "p p"]:
    """C = 1/n sum over samples of T^T T, padding left out: a sum of outer products, token by token."""
    p = samples[0].tokens.shape[1]
    total = torch.zeros(p, p, dtype=torch.float64)
    for sample in samples:
        for k in range(len(sample.tokens)):
            if sample.valid[k]:
                total += torch.outer(sample.tokens[k], sample.tokens[k])
    return total / len(samples)


def range_rank(eigenvalues: Sequence[float], variance_ratio: float) -> int:
    """The largest m with sum(lam[:m]) / sum(lam[m:]) <= r, held to 1 <= m <= p - 1; eigenvalues descending.

    >>> [range_rank([8.0, 4.0, 2.0, 1.0], r) for r in (0.5, 1.2, 4.0, 13.9, 14.0, 1e9)]
    [1, 1, 2, 2, 3, 3]
    >>> range_rank([1.0, 0.0, 0.0], 1e9)
    1
    """
    p = len(eigenvalues)
    rank = 1
    for m in range(1, p):
        null_energy = sum(eigenvalues[m:])
        if null_energy > 0 and sum(eigenvalues[:m]) / null_energy <= variance_ratio:
            rank = m
    return rank


def projectors(moment: Float[Tensor, "p p"], variance_ratio: float) -> tuple[int, Tensor, Tensor]:
    """The rank of the range space and the explicit projectors U_R U_R^T and U_N U_N^T.

    >>> rank, onto_range, onto_null = projectors(torch.diag(torch.tensor([1.0, 9.0, 2.0])).double(), 4.0)
    >>> rank, onto_range.diag().tolist(), onto_null.diag().tolist()
    (1, [0.0, 1.0, 0.0], [1.0, 0.0, 1.0])
    """
    eigenvalues, vectors = torch.linalg.eigh(moment)
    eigenvalues, vectors = eigenvalues.clamp(min=0).flip(0), vectors.flip(1)
    rank = range_rank(eigenvalues.tolist(), variance_ratio)
    return rank, vectors[:, :rank] @ vectors[:, :rank].T, vectors[:, rank:] @ vectors[:, rank:].T


# Conflicts (METHOD sections 2 and 3) -------------------------------------------------------------------------------


@dataclass
class Conflicts:
    """What an analysis must find; D blocks, K tasks."""

    range_rank: list[int]
    range_rate: Float[Tensor, "d k k"]
    null_rate: Float[Tensor, "d k k"]
    shared: Bool[Tensor, "k k"]
    samples: int

    def range_score(self) -> list[float]:
        """Mean rate over the pairs, per block."""
        return [mean_over_pairs(rate) for rate in self.range_rate]

    def null_score(self) -> list[float]:
        """Mean rate over the pairs, per block."""
        return [mean_over_pairs(rate) for rate in self.null_rate]


def mean_over_pairs(rate: Float[Tensor, "k k"]) -> float:
    """The mean of the entries above the diagonal."""
    pairs = list(combinations(range(len(rate)), 2))
    return sum(rate[i, j].item() for i, j in pairs) / len(pairs)


def token_gradients(
    model: nn.Module, block: str, task_losses: TaskLosses, batch: Any, task: str, rows_dim: int = 0
) -> tuple[Float[Tensor, "b n p"], Float[Tensor, "b n p"]]:
    """The tokens that enter a block and dL_task/dT there: one forward, one full backward, the tokens made a leaf."""
    entered: list[Tensor] = []

    def make_leaf(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        entered.append(args[0].detach().requires_grad_())
        return (entered[-1], *args[1:])

    handle = model.get_submodule(block).register_forward_pre_hook(make_leaf)
    try:
        losses = task_losses(model, batch)
    finally:
        handle.remove()
    (tokens,) = entered
    if task in losses:
        losses[task].backward()
    gradient = torch.zeros_like(tokens) if tokens.grad is None else tokens.grad
    return tokens.detach().movedim(rows_dim, 0), gradient.movedim(rows_dim, 0)


def samples_at(
    model: nn.Module, block: str, task_losses: TaskLosses, batches: Sequence[Any], tasks: Sequence[str], rows_dim: int
) -> list[Sample]:
    """Every sample of every batch at one block; padding is the second input of models that have one."""
    samples = []
    for batch in batches:
        tokens, gradients = torch.empty(0), {}
        for task in tasks:
            tokens, gradients[task] = token_gradients(model, block, task_losses, batch, task, rows_dim)
        padding = batch["inputs"][1] if len(batch["inputs"]) > 1 else torch.zeros(tokens.shape[:2], dtype=torch.bool)
        samples += [
            Sample(tokens[row], ~padding[row], {task: gradients[task][row] for task in tasks})
            for row in range(len(tokens))
        ]
    return samples


def is_zero(vector: Tensor) -> bool:
    """Exactly zero, every entry."""
    return not bool(vector.any())


def disagree(onto: Float[Tensor, "p p"], g: Float[Tensor, " p"], h: Float[Tensor, " p"]) -> bool:
    """Eq. 4 in one space: the projections' inner product is not positive. Scaling keeps tiny products from zero."""
    return bool((onto @ (g / g.abs().max())) @ (onto @ (h / h.abs().max())) <= 0)


def token_rate(onto: Float[Tensor, "p p"], samples: Sequence[Sample], i: str, j: str) -> float:
    """Conflicting over counted tokens; a token counts where neither task's full gradient is exactly zero."""
    conflicting = counted = 0
    for sample in samples:
        for g, h in zip(sample.gradient[i], sample.gradient[j], strict=True):
            if is_zero(g) or is_zero(h):
                continue
            counted += 1
            conflicting += disagree(onto, g, h)
    return conflicting / counted


def shift_gradient(sample: Sample, task: str) -> Float[Tensor, " p"]:
    """The sum of a sample's token gradients over its valid tokens (METHOD section 3)."""
    total = torch.zeros(sample.tokens.shape[1], dtype=torch.float64)
    for k in range(len(sample.tokens)):
        if sample.valid[k]:
            total += sample.gradient[task][k]
    return total


def disjoint_rate(onto: Float[Tensor, "p p"], samples: Sequence[Sample], i: str, j: str) -> float:
    """The share of conflicting pairs (a sample of one task, a sample of the other)."""
    conflicting = counted = 0
    h_j = [shift_gradient(sample, j) for sample in samples]
    for h, other in product([shift_gradient(sample, i) for sample in samples], h_j):
        if is_zero(h) or is_zero(other):
            continue
        counted += 1
        conflicting += disagree(onto, h, other)
    return conflicting / counted


def measure(
    model: nn.Module,
    task_losses: TaskLosses,
    batches: Sequence[Any],
    blocks: Sequence[str],
    tasks: Sequence[str],
    variance_ratio: float,
    rows_dim: int = 0,
) -> Conflicts:
    """METHOD sections 1 to 3 over a list of batches, in evaluation mode, on a copy of the model."""
    model = copy.deepcopy(model).eval()
    at = {block: samples_at(model, block, task_losses, batches, tasks, rows_dim) for block in blocks}
    labelled = {task: labels(at, task) for task in tasks}
    shared = torch.tensor([[bool(labelled[i] & labelled[j]) for j in tasks] for i in tasks])

    ranks = []
    range_rate = torch.zeros(len(blocks), len(tasks), len(tasks), dtype=torch.float64)
    null_rate = torch.zeros_like(range_rate)
    for d, block in enumerate(blocks):
        samples = at[block]
        if shared.all():
            moment = second_moment(samples)
        else:  # every task weighs the same, however many sentences it has
            moments = [second_moment([samples[s] for s in sorted(labelled[task])]) for task in tasks]
            moment = torch.stack(moments).mean(0)
        rank, onto_range, onto_null = projectors(moment, variance_ratio)
        ranks.append(rank)
        for a, b in combinations(range(len(tasks)), 2):
            rate = token_rate if shared[a, b] else disjoint_rate
            range_rate[d, a, b] = range_rate[d, b, a] = rate(onto_range, samples, tasks[a], tasks[b])
            null_rate[d, a, b] = null_rate[d, b, a] = rate(onto_null, samples, tasks[a], tasks[b])
    return Conflicts(ranks, range_rate, null_rate, shared, len(at[blocks[0]]))


def labels(at: Mapping[str, Sequence[Sample]], task: str) -> set[int]:
    """The samples on which a task has a loss: those where its gradient is not zero everywhere."""
    return {s for samples in at.values() for s, sample in enumerate(samples) if not is_zero(sample.gradient[task])}


# Plan (METHOD section 4) -------------------------------------------------------------------------------------------


def highest(scores: Sequence[float], fraction: float) -> set[int]:
    """The blocks with the highest scores; of equal scores the later block.

    >>> highest([0.1, 0.4, 0.3, 0.4], 0.5), highest([0.2, 0.2, 0.2], 0.5), highest([0.3, 0.1], 0.0)
    ({1, 3}, {1, 2}, {0})
    """
    count = max(1, math.floor(fraction * len(scores) + 0.5))
    return set(sorted(range(len(scores)), key=lambda d: (scores[d], d))[-count:])


def conflicting_tasks(rate: Float[Tensor, "k k"], tasks: Sequence[str], threshold: float) -> tuple[str, ...]:
    """The tasks with a pair whose rate is above the threshold, in order.

    >>> rate = torch.tensor([[0.0, 0.6, 0.1], [0.6, 0.0, 0.2], [0.1, 0.2, 0.0]])
    >>> conflicting_tasks(rate, ("a", "b", "c"), 0.5), conflicting_tasks(rate, ("a", "b", "c"), 0.7)
    (('a', 'b'), ())
    """
    return tuple(task for i, task in enumerate(tasks) if any(rate[i, j] > threshold for j in range(len(tasks))))


# Modulation, expansion, streams (METHOD sections 5 to 7) -----------------------------------------------------------


def through_block(
    call: Callable[[Tensor], Tensor],
    tokens: Float[Tensor, "b n p"],
    name: str,
    task: str,
    inserts: Inserts,
    values: Mapping[str, Tensor],
    joint: bool = False,
) -> Float[Tensor, "b n p"]:
    """One block for one task: T <- W_i * T + b_i, its own task tokens behind, the block, the task tokens away.

    With `joint` the tokens of all tasks are behind.

    >>> tokens = torch.ones(1, 2, 3)
    >>> values = {"x.dtme.scale": torch.full((1, 3), 1.0), "x.dtme.shift": torch.ones(1, 3)}
    >>> through_block(lambda t: t * 10, tokens, "x", "a", {"modulate": {"x": ("a",)}, "expand": {}}, values).tolist()
    [[[30.0, 30.0, 30.0], [30.0, 30.0, 30.0]]]
    >>> def mean(t): return t.mean(1, keepdim=True).expand_as(t)
    >>> values = {"x.dtme.tokens": torch.full((2, 2, 3), 5.0)}
    >>> through_block(mean, tokens, "x", "b", {"modulate": {}, "expand": {"x": ("a", "b")}}, values).tolist()
    [[[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]]
    """
    modulated, expanded = inserts["modulate"].get(name, ()), inserts["expand"].get(name, ())
    n = tokens.shape[1]
    if task in modulated:
        i = list(modulated).index(task)
        tokens = (1 + values[f"{name}.dtme.scale"][i]) * tokens + values[f"{name}.dtme.shift"][i]
    for i, owner in enumerate(expanded):
        if owner == task or joint:
            tokens = torch.cat([tokens, torch.stack([values[f"{name}.dtme.tokens"][i]] * len(tokens))], dim=1)
    return call(tokens)[:, :n]


def forward_one_task(
    model: nn.Module,
    task: str,
    inserts: Inserts,
    values: Mapping[str, Tensor],
    inputs: tuple[Tensor, ...],
    joint: bool = False,
) -> Tensor:
    """The output of one task, computed for that task alone on a model that nothing was applied to."""
    if isinstance(model, TinyViT):
        tokens = model.embed(inputs[0])
        for d, block in enumerate(model.blocks):
            tokens = through_block(block, tokens, f"blocks.{d}", task, inserts, values, joint)
        return model.heads[task](model.norm(tokens), len(inputs[0]))
    if isinstance(model, TimmMultitask):
        trunk = model.trunk
        tokens = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(inputs[0]))))
        for d, block in enumerate(trunk.blocks):
            tokens = through_block(block, tokens, f"trunk.blocks.{d}", task, inserts, values, joint)
        return model.heads[task](trunk.norm(tokens))
    assert isinstance(model, EncoderMultitask)
    words, padding = inputs
    tokens = model.embed(words)
    for d, layer in enumerate(model.encoder.layers):
        tokens = through_block(
            lambda t, layer=layer: masked_layer(layer, t, model.later, padding, model.batch_first),
            tokens,
            f"encoder.layers.{d}",
            task,
            inserts,
            values,
            joint,
        )
    return model.heads[task](model.norm(tokens), padding)


def masked_layer(
    layer: nn.Module,
    tokens: Float[Tensor, "b n p"],
    later: Bool[Tensor, "m m"] | None,
    padding: Bool[Tensor, "b m"],
    batch_first: bool,
) -> Float[Tensor, "b n p"]:
    """An encoder layer on batch-first tokens; those behind the m words are hidden from no position."""
    (b, n, _), m = tokens.shape, padding.shape[1]
    hidden = torch.zeros(b, n, dtype=torch.bool)
    hidden[:, :m] = padding
    mask = None
    if later is not None:
        mask = torch.zeros(n, n, dtype=torch.bool)
        mask[:m, :m] = later
    if batch_first:
        return layer(tokens, src_mask=mask, src_key_padding_mask=hidden)
    return layer(tokens.transpose(0, 1), src_mask=mask, src_key_padding_mask=hidden).transpose(0, 1)


def streams(blocks: Sequence[str], tasks: Sequence[str], inserts: Inserts) -> list[int]:
    """Streams per block: one for every task that something was inserted for so far, one for all the others together.

    >>> inserts = {"modulate": {"1": ("a",)}, "expand": {"2": ("a", "b")}}
    >>> streams(["0", "1", "2"], ("a", "b", "c"), inserts), streams(["0", "1", "2"], ("a", "b"), inserts)
    ([1, 2, 3], [1, 2, 2])
    """
    counts = []
    apart: set[str] = set()
    for block in blocks:
        apart |= {task for kind in ("modulate", "expand") for task in inserts[kind].get(block, ()) if task in tasks}
        counts.append(len(apart) + (len(apart) < len(tasks)))
    return counts
