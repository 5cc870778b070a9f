"""The analysis against the sum of its parts, each timed alone, and against the literal way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

import dtme
from benchmarks.clock import Middle, in_turn, middle, seconds
from benchmarks.subject import TASKS, Size, task_losses
from dtme.measure.capture import capture
from dtme.measure.token_space import TokenSpace, second_moment, token_space
from dtme.trunk.blocks import find_blocks

RATIO = 100.0
SAME_RATES = 0.003
"""By how much rates may differ that are the same but for rounding: 2 of the 816 tokens of three small batches."""


def against_its_parts(size: Size, batches: int, turns: int) -> Middle:
    """`analyze` over the sum of its parts.

    Per batch they are a forward pass and the second moments, and again a forward pass, K backward passes to the tokens and
    the Gram products; once, the eigenvectors.
    """
    model, data = size.model(), [size.batch(seed) for seed in range(batches)]
    ratios = []
    for turn in range(turns + 1):
        whole = seconds(lambda: dtme.analyze(model, task_losses, data, max_samples=None))
        if turn:
            ratios.append(whole / parts(model, data))
    return middle(ratios)


def parts(model: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    """Seconds of the arithmetic alone, all of it where the model is, as `analyze` has it."""
    moments: dict[str, Any] = {}
    total = 0.0

    def timed(work: Callable[[], Any]) -> Any:
        nonlocal total
        kept = []
        total += seconds(lambda: kept.append(work()))
        return kept[0]

    model = copy.deepcopy(model).requires_grad_(False)
    blocks = find_blocks(model)
    for batch in batches:
        with torch.no_grad(), capture(blocks, differentiable=False) as caught:
            timed(partial(task_losses, model, batch))
            own = timed(lambda: {name: second_moment(entry.tokens) for name, entry in caught.entries.items()})
            moments = {name: moments.get(name, 0.0) + moment for name, moment in own.items()}
    spaces = timed(lambda: {name: token_space(moment, RATIO) for name, moment in moments.items()})
    smaller = {name: _smaller_basis(space).to(next(model.parameters())) for name, space in spaces.items()}
    for batch in batches:
        with capture(blocks, differentiable=True) as caught:
            losses = timed(partial(task_losses, model, batch))
            tokens = [entry.tokens for entry in caught.entries.values()]
            found = {task: timed(partial(_backward, losses, task, tokens)) for task in TASKS}
            for place, name in enumerate(blocks):
                stacked = torch.stack([found[task][place] for task in TASKS], 2)
                timed(partial(_grams, stacked, smaller[name]))
    return total


def _backward(losses: dict[str, Tensor], task: str, tokens: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(losses[task], tokens, retain_graph=task != TASKS[-1])


def _smaller_basis(space: TokenSpace) -> Tensor:
    small = space.range_basis if space.rank <= len(space.basis) // 2 else space.null_basis
    return small.contiguous()


def _grams(gradients: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    near = gradients @ basis
    return gradients @ gradients.mT, near @ near.mT


def literal(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rates as the equations have them: per block a forward pass and per task a full backward pass, explicit projectors."""
    rates = {}
    for name, block in find_blocks(model).items():
        moment, gradients = None, []
        for task in TASKS:
            entered: list[Tensor] = []

            def leaf(_: Any, args: Any, entered: list[Tensor] = entered) -> Any:
                entered.append(args[0].detach().requires_grad_())
                return (entered[0], *args[1:])

            with block.register_forward_pre_hook(leaf):
                task_losses(model, batch)[task].backward()
            model.zero_grad(set_to_none=True)
            gradients.append(entered[0].grad)
            moment = second_moment(entered[0].detach())
        space = token_space(moment, RATIO)  # pyright: ignore[reportArgumentType]
        rates[name] = torch.zeros(2, len(TASKS), len(TASKS))
        for place, basis in enumerate((space.range_basis, space.null_basis)):
            projector = (basis @ basis.mT).to(batch["image"])
            projected = [gradient @ projector for gradient in gradients]
            for i, j in combinations(range(len(TASKS)), 2):
                rate = ((projected[i] * projected[j]).sum(-1) <= 0).float().mean()
                rates[name][place, i, j] = rates[name][place, j, i] = rate
    return rates


def against_the_literal_way(size: Size, batches: int, turns: int) -> tuple[Middle, float]:
    """How many times as long the literal way takes, and the largest difference between the two ways' rates."""
    model, data = size.model(), [size.batch(seed) for seed in range(batches)]
    together = {name: torch.cat([batch[name] for batch in data]) for name in data[0]}
    kept: dict[str, Any] = {}

    def ours() -> None:
        kept["report"] = dtme.analyze(model, task_losses, data, max_samples=None)

    def theirs() -> None:
        kept["rates"] = literal(model, together)

    taken = in_turn({"literal": theirs, "ours": ours}, turns)
    report = kept["report"]
    both = torch.stack([report.range_rate, report.null_rate], 1)
    wanted = torch.stack([kept["rates"][name] for name in report.blocks])
    return taken.ratio("literal", "ours"), float((both - wanted).abs().max())
