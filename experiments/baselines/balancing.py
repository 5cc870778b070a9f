"""Balancing: how the losses of several tasks become the gradients of one step.

    d = A(J) for what the tasks share,    g_i for what task i has for itself

A training loop calls a balancing where it would call `loss.backward()`, and `after_step` behind `optimiser.step()`. A
balancing is a module: `parameters()` are to be trained along (in a group without weight decay), and `state_dict` holds
everything that goes on from step to step, so that a run can be resumed.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from experiments.baselines.jacobian import add_gradient, add_sum, gramian, is_shared, stacked, task_gradients

Aggregation = Callable[[list[Tensor]], tuple[list[Tensor], Tensor | None]]
"""From J in blocks of columns to the update in the same blocks, and the tasks' weights if there are such."""
Weighting = Callable[[Tensor], Tensor]
"""From the Gramian `J J^T` (float64, K x K) to the weights of the tasks (K)."""


class Balancing(nn.Module, ABC):
    """What every way of balancing tasks offers to a training loop.

    Example:
        >>> class PlainSum(Balancing):
        ...     def forward(self, model, losses):
        ...         torch.stack(list(losses.values())).sum().backward()
        ...         return dict.fromkeys(losses, torch.ones(()))
        >>> model = nn.Linear(1, 1)
        >>> losses = {"a": model(torch.ones(1)).sum(), "b": model(torch.ones(1)).sum()}
        >>> PlainSum()(model, losses), model.weight.grad
        ({'a': tensor(1.), 'b': tensor(1.)}, tensor([[2.]]))
    """

    @abstractmethod
    def forward(self, model: nn.Module, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add one step's gradients to the parameters' `.grad`.

        Args:
            model: The losses were computed by it.
            losses: Per task a scalar, already times the weight the task has in any case.

        Returns:
            Per task the weight it was given, for a log; empty where a method gives none.
        """

    def after_step(self, again: Callable[[], Mapping[str, Tensor]]) -> None:
        """Called once the optimiser has made its step.

        Args:
            again: Computes the losses anew on the same batch; called by a method that needs them alone (FAMO), for which
                it costs one more forward pass.
        """


class GradientBalancing(Balancing):
    """Gradients of the tasks, aggregated on the parameters they share; every other parameter gets its own task's gradient.

    A parameter is shared where two tasks' losses move one of its elements: trunk weights are, heads and the inserts of a
    plan are not (`jacobian.is_shared`), decided anew at each step. Costs K backward passes and the memory of K gradients.
    It works within one process: gradients do not pass through the hooks of `DistributedDataParallel`.

    Args:
        aggregation: From the Jacobian by the shared parameters to the update.
        seed: Of what the aggregation draws; step t of a seed draws the same numbers in every run.
    """

    step: Tensor

    def __init__(self, aggregation: Aggregation, seed: int = 0) -> None:
        super().__init__()
        self.aggregation = aggregation
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, model: nn.Module, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add one step's gradients to the parameters' `.grad`; see `Balancing.forward`.

        Raises:
            ValueError: A loss is no scalar with a graph.
            FloatingPointError: A gradient is not finite; names task and parameter.
        """
        named = dict(model.named_parameters())
        shared: dict[str, Tensor] = {}
        gradients = task_gradients(model, losses)
        for name in tuple(gradients):
            rows = gradients.pop(name)  # so that no more than one parameter's gradients are held twice
            if is_shared(rows):
                shared[name] = stacked(rows)
            else:
                add_sum(named[name], rows)
        weights = None
        if shared:
            with torch.no_grad(), drawing(self.seed, int(self.step), next(iter(shared.values())).device):
                update, weights = self.aggregation(list(shared.values()))
            for name, gradient in zip(shared, update, strict=True):
                add_gradient(named[name], gradient.to(named[name].dtype))
        self.step += 1
        return {} if weights is None else dict(zip(losses, weights.unbind(), strict=True))


def weighted(weighting: Weighting, blocks: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The tasks' gradients summed with weights that depend on their products alone: `d = sum_i w_i g_i, w = w(J J^T)`.

    A task whose gradient is exactly zero (no pixel of the batch may be labelled for it) has no say and gets weight 0.

    Args:
        weighting: From the Gramian to the weights.
        blocks: J in blocks of columns.

    Raises:
        FloatingPointError: The method found no finite weights.

    Example:
        >>> weighted(lambda products: products.diagonal(), [torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])])
        ([tensor([1., 8.])], tensor([1., 4., 0.], dtype=torch.float64))
    """
    products = gramian(blocks)
    moving = products.diagonal() > 0
    weights = torch.zeros(len(products), dtype=products.dtype)
    if bool(moving.any()):
        weights[moving] = weighting(products[moving][:, moving])
    if not bool(weights.isfinite().all()):
        raise FloatingPointError(
            f"the weights {weights.tolist()} are not finite; the products are {products.tolist()}."
        )
    return [weights.to(block) @ block for block in blocks], weights


def of_scale_one(weighting: Weighting, products: Float[Tensor, "tasks tasks"]) -> Float[Tensor, " tasks"]:
    """The weights for a Gramian of trace one, for methods that do not depend on its scale.

    TorchJD holds some of them against fixed thresholds: CAGrad stands still where |J|^2 is below 1e-4.
    """
    return weighting(products / products.trace())


@contextmanager
def drawing(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Within it torch draws what it draws at that step of that seed; afterwards its generators are as they were."""
    cuda = [device] if device.type == "cuda" else []
    number = int.from_bytes(hashlib.sha256(f"{seed}, {step}".encode()).digest()[:4], "big")
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(number)
        for place in cuda:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(number)
        yield
