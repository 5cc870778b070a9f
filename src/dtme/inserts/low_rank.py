"""Low-rank updates of a linear layer, one per task, in the streams (ours, not the paper's).

    y = W x + b + B_i A_i x,    A_i in R^(rank x in), B_i in R^(out x rank), B_i = 0 at the start

Every row of a linear layer's input belongs to one lane of the pass, a stream or a sample; one batched product serves all. How
a layer gets its update is in `adapting`.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme._tracing import is_transformed, is_watched
from dtme.trunk.linear_layers import Linear


class LowRank(nn.Module):
    """The low-rank updates of one linear layer, stacked over the tasks that have one.

    Attributes:
        down: `A`, uniform at the start as a linear layer's weight is.
        up: `B`, zero at the start.
    """

    down: Float[Tensor, "tasks rank inputs"]
    up: Float[Tensor, "tasks outputs rank"]

    def __init__(self, tasks: int, linear: Linear, rank: int, like: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(like.new_empty(tasks, rank, linear.in_features))
        self.up = nn.Parameter(like.new_empty(tasks, linear.out_features, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin anew: `A` small, `B` zero, so that nothing changes."""
        bound = 1 / math.sqrt(self.down.shape[-1])
        with torch.no_grad():
            self.down.uniform_(-bound, bound)
            self.up.zero_()

    def forward(self) -> tuple[Tensor, Tensor]:
        """Both, for who has to call a module to have its weights brought from elsewhere."""
        return self.down, self.up


def is_watched_when_called(module: nn.Module) -> bool:
    """Whether something acts when a module is called: accelerate, which brings its weights, or TorchJD, which counts them.

    Raises:
        RuntimeError: TorchJD's engine is told which dimension holds the samples.
    """
    computers = [getattr(hook, "gramian_computer", None) for hook in module._forward_hooks.values()]
    counting = [computer for computer in computers if computer is not None]  # other hooks look on, FLOP counters say
    for computer in counting:
        if type(getattr(computer, "jacobian_computer", None)).__name__ == _BY_ROWS:
            raise RuntimeError(
                "torchjd.autogram.Engine(batch_dim=...) takes every row of a batch for a sample of its own, and a block with "
                "inserts runs on those of several streams. Give it batch_dim=None, or use torchjd.autojac."
            )
    return "_hf_hook" in vars(module) or bool(counting)


_BY_ROWS = "FunctionalJacobianComputer"


def low_rank_update(
    inputs: Tensor,
    outputs: Tensor,
    down: Float[Tensor, "lanes rank inputs"],
    up: Float[Tensor, "lanes outputs rank"],
    dim: int,
    *,
    fresh: bool = False,
    linear: nn.Linear | None = None,
) -> Tensor:
    """The outputs of a linear layer with each lane's `B A x` added; lanes lie one after another along `dim`.

    To read and write large tensors is most of what the update costs, so it is added in place wherever that can be.

    Args:
        inputs: What the layer took.
        outputs: What it gave.
        down: Each lane's `A`.
        up: Each lane's `B`.
        dim: Of the lanes, in inputs and outputs.
        fresh: The outputs are no one else's, and may be written to.
        linear: The layer, if the outputs are `linear.weight @ inputs + linear.bias` and nothing else: its backward pass is
            then one with that of the update.

    Example:
        >>> x, y = torch.ones(2, 3, 4), torch.zeros(2, 3, 1)
        >>> low_rank_update(x, y, torch.ones(2, 1, 4), torch.tensor([1.0, 10.0]).view(2, 1, 1), dim=0)[:, 0, 0].tolist()
        [4.0, 40.0]
    """
    lanes = len(down)
    rows = inputs.movedim(dim, 0)
    down, up = down.to(inputs.dtype), up.to(inputs.dtype)  # some routers compute in a wider type than their model
    up = up.mT.contiguous()  # so that neither product of its backward pass has a handful of columns, which is slow
    in_place = fresh and dim == 0 and outputs.is_contiguous() and not (is_transformed() or is_watched())
    if in_place and torch.is_grad_enabled() and _is_plain(linear, inputs, outputs):
        return _AdaptedLinear.apply(inputs, linear.weight, linear.bias, down, up, outputs.detach())
    inner = torch.bmm(rows.reshape(lanes, -1, rows.shape[-1]), down.mT)
    if dim == 0 and inner.dtype == up.dtype == outputs.dtype and outputs.is_contiguous():
        own = outputs.view(lanes, -1, outputs.shape[-1])
        if in_place and not torch.is_grad_enabled():
            torch.baddbmm(own, inner, up, out=own)
            return outputs
        return torch.baddbmm(own, inner, up).view_as(outputs)
    update = torch.bmm(inner, up)
    return outputs + update.reshape(*rows.shape[:-1], -1).movedim(0, dim).to(outputs.dtype)


class _AdaptedLinear(torch.autograd.Function):
    """`W x + b + B A x`, written over the known `W x + b`, which nothing needs on the way back; its inputs get one gradient."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        inputs, weight, _, down, up, outputs = given
        inner = torch.bmm(_lanes(inputs, down), down.mT)
        own = _lanes(outputs, down)
        torch.baddbmm(own, inner, up, out=own)
        ctx.mark_dirty(outputs)
        ctx.save_for_backward(inputs, weight, down, up, inner)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Types are settled, whatever autocast says on the way back.
        with torch.autocast(gradients[0].device.type, enabled=False):
            return _gradients(ctx.saved_tensors, ctx.needs_input_grad, gradients[0])


def _gradients(saved: tuple[Tensor, ...], wanted: tuple[bool, ...], gradient: Tensor) -> tuple[Tensor | None, ...]:
    inputs, weight, down, up, inner = saved
    of_inputs, of_weight, of_bias, of_down, of_up, _ = wanted
    gradient = gradient.reshape(-1, len(weight))
    apart = _lanes(gradient, down)
    if torch.is_grad_enabled():  # to be differentiated again, with all it depends on
        inner = torch.bmm(_lanes(inputs, down), down.mT)
    of_inner = torch.bmm(apart, up.mT) if of_inputs or of_down else inner
    return (
        _of_inputs(gradient, weight, of_inner, down).view_as(inputs) if of_inputs else None,
        gradient.mT @ inputs.reshape(-1, inputs.shape[-1]) if of_weight else None,
        gradient.sum(0) if of_bias else None,
        torch.bmm(of_inner.mT, _lanes(inputs, down)) if of_down else None,
        torch.bmm(inner.mT, apart) if of_up else None,
        None,
    )


def _of_inputs(gradient: Tensor, weight: Tensor, of_inner: Tensor, down: Tensor) -> Tensor:
    found = gradient @ weight
    own = _lanes(found, down)
    # Of several gradients at once (`is_grads_batched`) nothing can be written in place either.
    at_once = torch._C._functorch.is_legacy_batchedtensor(gradient)  # pyright: ignore[reportAttributeAccessIssue]
    if at_once or torch.is_grad_enabled() or is_transformed() or is_watched():
        return own + torch.bmm(of_inner, down)
    torch.baddbmm(own, of_inner, down, out=own)
    return found


def _lanes(rows: Tensor, down: Tensor) -> Float[Tensor, "lanes n channels"]:
    return rows.reshape(len(down), -1, rows.shape[-1])


def _is_plain(linear: nn.Linear | None, inputs: Tensor, outputs: Tensor) -> TypeGuard[nn.Linear]:
    """Whether a layer has computed its outputs in the type of its weight, and that is an ordinary tensor."""
    return (
        linear is not None
        and type(linear.weight) in (Tensor, nn.Parameter)
        and type(outputs) is Tensor
        and inputs.dtype == linear.weight.dtype == outputs.dtype
    )
