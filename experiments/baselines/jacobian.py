"""The Jacobian of the tasks' losses by a model's parameters: one row per task, kept apart by parameter.

    J = [g_1, ..., g_K]^T,    g_i = dL_i / d theta

It is taken by the parameters, not by the features at the end of the trunk: where a plan has parted the streams there is
no one tensor that all tasks share, but the weights they run through are shared as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dtme._shapes import Float

Rows = list[Tensor | None]
"""Per task the gradient of its loss by one parameter; `None` where the loss does not reach the parameter."""


def task_gradients(model: nn.Module, losses: Mapping[str, Tensor]) -> dict[str, Rows]:
    """Each task's gradient by each parameter that is trained: K backward passes through one graph, which is then freed.

    Args:
        model: Its parameters that require a gradient are differentiated by; no `.grad` is touched.
        losses: Per task a scalar.

    Returns:
        Per parameter, by name, a row per task in the order of `losses`.

    Raises:
        ValueError: There is no loss, or a loss is no scalar that depends on a parameter.
        FloatingPointError: A gradient is not finite; the message names task and parameter.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> out = model(torch.tensor([3.0, 4.0])).sum()
        >>> {name: [row.tolist() for row in rows] for name, rows in task_gradients(model, {"a": out, "b": -out}).items()}
        {'weight': [[[3.0, 4.0]], [[-3.0, -4.0]]]}
    """
    if not losses:
        raise ValueError("losses is empty: give the loss of one task at least.")
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows: dict[str, Rows] = {name: [] for name in named}
    for place, (task, loss) in enumerate(losses.items()):
        if loss.numel() != 1 or not loss.requires_grad:
            kind = f"of shape {tuple(loss.shape)}" if loss.numel() != 1 else "without a graph"
            raise ValueError(
                f"losses[{task!r}] is a tensor {kind}: give a scalar computed by the model with gradients on."
            )
        last = place + 1 == len(losses)
        found = torch.autograd.grad(loss, list(named.values()), retain_graph=not last, allow_unused=True)
        for name, gradient in zip(named, found, strict=True):
            if gradient is not None and not bool(gradient.isfinite().all()):
                raise FloatingPointError(
                    f"the gradient of task {task!r} by parameter {name!r} is not finite, its loss is {loss.item()}: lower the "
                    "learning rate, or look for a root or a quotient that its loss takes of zero."
                )
            rows[name].append(gradient)
    return rows


def is_shared(rows: Sequence[Tensor | None]) -> bool:
    """Whether a parameter is shared: two tasks' losses move one and the same element of it.

    That a loss reaches the parameter is not enough. What a plan adds is stacked over the tasks, one row for each, and every
    loss reaches the stack; yet each moves its own row alone, so that there is nothing to balance.

    Example:
        >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
        >>> is_shared([a, None]), is_shared([a, b]), is_shared([a, a + b])
        (False, False, True)
    """
    reached = [row != 0 for row in rows if row is not None]
    return len(reached) > 1 and bool((torch.stack(reached).sum(0) > 1).any())


def stacked(rows: Sequence[Tensor | None]) -> Float[Tensor, "tasks n"]:
    """The rows of one parameter as a matrix; zero where a loss does not reach it."""
    like = next(row for row in rows if row is not None)
    return torch.stack([torch.zeros_like(like) if row is None else row for row in rows]).flatten(1)


def gramian(blocks: Iterable[Float[Tensor, "tasks _"]]) -> Float[Tensor, "tasks tasks"]:
    """`J J^T` in float64 on the CPU, from the columns of J in blocks.

    Example:
        >>> gramian([torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [3.0]])]).tolist()
        [[5.0, 6.0], [6.0, 9.0]]
    """
    products = [block.double() @ block.double().T for block in blocks]
    return torch.stack(products).sum(0).cpu()


def add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add to `parameter.grad`, as a backward pass does."""
    shaped = gradient.view_as(parameter)
    parameter.grad = shaped if parameter.grad is None else parameter.grad + shaped


def add_sum(parameter: nn.Parameter, rows: Sequence[Tensor | None]) -> None:
    """Add the plain sum of the tasks' gradients to `parameter.grad`, which stays as it is where no loss reaches."""
    reached = [row for row in rows if row is not None]
    if reached:
        add_gradient(parameter, torch.stack(reached).sum(0))
