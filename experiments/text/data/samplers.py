"""How often each task is drawn, and the order of the tasks: a function of the seed and the step, the same in all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dtme._shapes import Float, Int
from experiments.runner.seeds import hash_of

Sampler = Literal["proportional", "square root", "annealed", "temperature", "round robin"]
ANNEALING_EPOCHS = 25
"""Equal parts of a run at whose borders the annealed sampler changes (25 in the publication)."""


def probabilities(
    sampler: Sampler, sizes: Sequence[int], *, progress: float = 0.0, temperature: float = 10.0
) -> Float[Tensor, " tasks"]:
    r"""The probability of each task in the next draw, $p_i \propto N_i^\alpha$ with N_i training sentences.

    - `"proportional"`: $\alpha = 1$.
    - `"square root"`: $\alpha = 1/2$.
    - `"annealed"`: $\alpha = 1 - 0.8 (e - 1) / (E - 1)$ in epoch e of E (Stickland & Murray, "BERT and PALs", ICML 2019).
    - `"temperature"`: $\alpha = 1/T$ (T = 10 in Mahabadi et al., "HyperFormer", ACL 2021).
    - `"round robin"`: all alike; `task_order` takes them in turn.

    Args:
        sampler: Which.
        sizes: Training sentences per task.
        progress: Share of the run that is done, below 1.
        temperature: T.

    Raises:
        ValueError: A size is not positive, or the temperature is below 1.

    Example:
        >>> probabilities("square root", [100, 400, 900]).tolist()
        [0.1666..., 0.3333..., 0.5]
        >>> [round(float(probabilities("annealed", [100, 1000], progress=p)[1]), 3) for p in (0.0, 0.99)]
        [0.909, 0.613]
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes={list(sizes)}: every task needs at least one training sentence.")
    if temperature < 1:
        raise ValueError(f"temperature={temperature}: give at least 1, which is proportional sampling.")
    epoch = int(progress * ANNEALING_EPOCHS)
    alpha = {
        "proportional": 1.0,
        "square root": 0.5,
        "annealed": 1 - 0.8 * epoch / (ANNEALING_EPOCHS - 1),
        "temperature": 1 / temperature,
        "round robin": 0.0,
    }[sampler]
    weights = torch.tensor(sizes, dtype=torch.float64).pow(alpha)
    return weights / weights.sum()


def task_order(
    sampler: Sampler,
    sizes: Sequence[int],
    draws: int,
    seed: int,
    *,
    start: int = 0,
    progress: float = 0.0,
    temperature: float = 10.0,
) -> Int[Tensor, " draws"]:
    """The tasks of draws `start` to `start + draws`, as indices.

    Example:
        >>> task_order("round robin", [5, 5, 5], 5, seed=0, start=1).tolist()
        [1, 2, 0, 1, 2]
        >>> order = task_order("proportional", [1, 9], 1000, seed=0)
        >>> 850 < int(order.sum()) < 950, torch.equal(order, task_order("proportional", [1, 9], 1000, seed=0))
        (True, True)
    """
    if sampler == "round robin":
        return torch.arange(start, start + draws) % len(sizes)
    generator = torch.Generator().manual_seed(hash_of(seed, "tasks", start))
    chances = probabilities(sampler, sizes, progress=progress, temperature=temperature)
    return torch.multinomial(chances, draws, replacement=True, generator=generator)
