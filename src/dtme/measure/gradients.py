"""Each task's gradient by the tokens that its stream brings to the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from dtme._pytree import tensors_of
from dtme._shapes import Float
from dtme._tracing import of_this_thread
from dtme.measure.capture import Capture

ROUNDING = 16.0
"""Times the precision of its numbers that a token has to matter to a loss, or else the gradient by it is rounding."""


@dataclass
class LossScales:
    """Powers of two that losses are multiplied by, and gradients divided by again, where float16 takes part in a pass.

    What is below 6e-8 is zero in float16: gradients of a loss that is small, or a mean over many, would be counted as none, or
    point where rounding points. So each task begins with a large factor, and takes a smaller one as long as a gradient
    overflows. What the passes of one batch have found goes on with the next.

    Attributes:
        exponents: By task, what its loss is multiplied by, as a power of two.
        agree: Whether something holds in all processes that go back through a sharded model together.
    """

    exponents: dict[str, int] = field(default_factory=dict)
    agree: Callable[[bool], bool] = bool

    def differentiate(self, task: str, loss: Tensor, tokens: list[Tensor]) -> tuple[Tensor | None, ...]:
        """The gradients of a loss times its factor; the graph is kept."""
        largest = 15 if loss.dtype == torch.float16 else 24
        exponent = self.exponents.get(task, largest)
        while True:
            factor = torch.full_like(loss, 2.0**exponent)
            found = torch.autograd.grad(loss, tokens, factor, retain_graph=True, allow_unused=True)
            finite = all(bool(gradient.isfinite().all()) for gradient in found if gradient is not None)
            if self.agree(finite) or exponent <= -largest:
                self.exponents[task] = exponent
                return found
            exponent -= 3


def compute_token_gradients(
    losses: dict[str, Tensor], caught: Capture, number: int, scales: LossScales | None = None
) -> Iterator[tuple[str, dict[str, Float[Tensor, "samples tokens p"]]]]:
    """Block by block, per task the gradient of its loss by the tokens that its stream brings there.

    One backward pass per task, to the tokens of all blocks; the last one frees the graph. No gradient of a parameter is
    computed. What a block has given is let go when the next is asked for.

    Where a token does not matter, but for rounding, its gradient is made zero: two channels behind a layer norm, say, are
    always 1 and -1. Such is a token T whose gradient g cannot change its share of the loss L, `|g| |T| <= 16 eps |L| / tokens`,
    |T| without what all channels have in common. What tokens matter in real models lies a thousand times above.

    Args:
        losses: By task. They are emptied: as long as one is held, so is the graph in front of it.
        caught: What entered the blocks in the pass that gave the losses.
        number: Of the batch.
        scales: Of the losses, where float16 takes part; what they were in the batch before.

    Raises:
        ValueError: A gradient is not finite, no gradient of a task reaches the trunk, or two tasks read different runs of a
            block; the last two are known, and raised, when all blocks are done.

    Example:
        >>> from dtme.measure.capture import capture
        >>> block = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> with capture({"block": block}, differentiable=True) as caught, caught.reading(None):
        ...     tokens = block(torch.randn(2, 3, 8))
        >>> found = dict(compute_token_gradients({"a": tokens.sum(), "b": tokens.std()}, caught, 0))
        >>> found["block"]["b"].shape
        torch.Size([2, 3, 8])
    """
    values = {task: abs(float(loss.detach())) for task, loss in losses.items()}
    scales = LossScales() if scales is None else scales
    of_tasks = _backward(losses, caught, scales if caught.half else None)
    reached: dict[str, dict[str, list[bool]]] = {task: {} for task in of_tasks}
    for name, entry in caught.entries.items():
        gradients, spread = {}, {}
        for task, of_blocks in of_tasks.items():
            of_runs = of_blocks.pop(name)
            reached[task][name] = [gradient is not None for gradient in of_runs]
            whole = [
                torch.zeros_like(tokens) if gradient is None else gradient
                for tokens, gradient in zip(entry.of_task(task), of_runs, strict=True)
            ]
            del of_runs
            gradients[task] = entry.valid_samples(whole)
            if caught.half:
                gradients[task] = _unscaled(gradients[task], scales.exponents.get(task, 0))
            sizes = torch.linalg.vector_norm(gradients[task], inf, -1)
            if not bool(sizes.isfinite().all()):
                raise ValueError(
                    f"the gradient of task {task!r} by the tokens entering block {name!r} is not finite in batch {number}."
                )
            own = tuple(map(id, entry.of_task(task)))
            if own not in spread:
                spread[own] = _spread(entry.valid_samples(entry.of_task(task)))
            rounding = sizes * spread[own] <= ROUNDING * _precision(sizes) * values[task] / sizes.numel()
            if bool(rounding.any()):
                gradients[task] = gradients[task].masked_fill(rounding.unsqueeze(-1), 0.0)
        yield name, gradients
        gradients = whole = None  # let go while the next are made
    _check_reached(reached, caught)
    _check_runs_shared(reached, caught, number)


def _unscaled(gradient: Tensor, exponent: int) -> Tensor:
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)) * 2.0**-exponent


@torch.no_grad()
def _spread(tokens: Float[Tensor, "samples tokens p"]) -> Float[Tensor, "samples tokens"]:
    """How far a token's channels lie from their mean, times the root of their number; a hundredth of the usual at least."""
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    apart = torch.linalg.vector_norm(tokens - tokens.mean(-1, keepdim=True), dim=-1)
    usual = torch.linalg.vector_norm(tokens) / max(1, apart.numel()) ** 0.5
    return torch.maximum(apart, 0.01 * usual) * tokens.shape[-1] ** 0.5


def _precision(tensor: Tensor) -> float:
    return torch.finfo(torch.promote_types(tensor.dtype, torch.float32)).eps


def _backward(
    losses: dict[str, Tensor], caught: Capture, scales: LossScales | None
) -> dict[str, dict[str, list[Tensor | None]]]:
    """By task and block the gradients of its loss by the tokens of each run; `None` where it does not depend on them."""
    found: dict[str, dict[str, list[Tensor | None]]] = {}
    for task in tuple(losses):
        loss = losses.pop(task)
        tokens = {name: entry.of_task(task) for name, entry in caught.entries.items()}
        flat = [own for of_runs in tokens.values() for own in of_runs]
        keep = any(later.requires_grad for later in losses.values())
        if not loss.requires_grad:
            of_flat: tuple[Tensor | None, ...] = (None,) * len(flat)
        elif scales is not None:
            of_flat = scales.differentiate(task, loss, flat)
        else:
            of_flat = torch.autograd.grad(loss, flat, retain_graph=keep, allow_unused=True)
        gradients = iter(of_flat)
        found[task] = {name: [next(gradients) for _ in of_runs] for name, of_runs in tokens.items()}
        del of_flat
    return found


def _check_reached(reached: Mapping[str, Mapping[str, list[bool]]], caught: Capture) -> None:
    for task, blocks in reached.items():
        if not any(map(any, blocks.values())):
            raise ValueError(
                f"the loss of task {task!r} does not reach the trunk: no token that enters {', '.join(caught.entries)} moves it. "
                "Is the trunk's output detached, or the loss computed under no_grad?"
            )


def _check_runs_shared(reached: Mapping[str, Mapping[str, list[bool]]], caught: Capture, number: int) -> None:
    """Where blocks run several times, each two tasks have to read a run in common: no token has both gradients otherwise."""
    if all(len(entry.runs) == 1 for entry in caught.entries.values()):
        return
    for one, other in combinations(reached, 2):
        runs = (zip(own, reached[other][name], strict=True) for name, own in reached[one].items())
        if not any(both == (True, True) for of_block in runs for both in of_block):
            block = next(name for name, entry in caught.entries.items() if len(entry.runs) > 1)
            raise ValueError(
                f"tasks {one!r} and {other!r} read different runs of block {block!r} in batch {number}. Compute their losses "
                "from one forward pass; where each has inputs of its own, give these as batches of their own."
            )


@contextmanager
def catch_outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """By name, the tensors that modules give while the context lasts and that gradients can be taken by."""
    caught: dict[str, list[Tensor]] = {name: [] for name in modules}

    def catch(name: str, output: Any) -> None:
        caught[name] += [tensor for tensor in tensors_of(output) if tensor.requires_grad]

    handles = [
        module.register_forward_hook(of_this_thread(lambda module, args, output, name=name: catch(name, output)))
        for name, module in modules.items()
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def check_branches(losses: Mapping[str, Tensor], outputs: Mapping[str, list[Tensor]]) -> None:
    """Refuse branches of which two have changed places. The graph is kept, and gone through no further than the branches.

    Args:
        losses: By task.
        outputs: By task, what its branch has given.

    Raises:
        ValueError: A loss depends on another task's branch and not on its own.
    """
    for task, loss in losses.items():
        if not loss.requires_grad or not outputs.get(task):
            continue
        read = {
            other
            for other, tensors in outputs.items()
            if tensors
            and any(
                gradient is not None
                for gradient in torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
            )
        }
        if read and task not in read:
            raise ValueError(
                f"branches: the loss of task {task!r} depends on the branch of {sorted(read)[0]!r} and not on its own. Have they "
                "changed places?"
            )
