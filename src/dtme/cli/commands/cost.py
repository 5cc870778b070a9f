"""`dtme cost`: the price of a plan, before anything is trained."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from dtme.cli.answer import Answer, UsageError, listed
from dtme.cli.paths import check_input
from dtme.cli.user_file import UserFile, load_user_file

if TYPE_CHECKING:
    from torch import nn

    from dtme import Plan


def cost(file: Positional[Path], plan: Positional[Path], steps: int = 5, seed: int = 0) -> Answer:
    """Tell what a plan costs on your model: FLOPs, streams of each block, parameters, and the time of a step. Nothing is trained.

    Args:
        file: Your file, as `dtme init` writes it.
        plan: What `dtme plan` wrote, or you edited.
        steps: Steps to time, of which the median is told; 0 times none.
        seed: Of the random numbers of torch, before your model is made.
    """
    check_input(plan, "the plan that `dtme plan` wrote")
    if steps < 0:
        raise UsageError(f"--steps {steps}: give how many steps to time, 0 for none.")
    import torch

    import dtme

    try:
        chosen = dtme.Plan.load(plan)
    except ValueError as error:
        raise UsageError(str(error)) from error
    user = load_user_file(file)
    torch.manual_seed(seed)
    model, batch = user.model(), user.first_batch()
    found = dtme.cost(model, chosen, batch, task_losses=user.task_losses, branches=user.branches_of(model))
    planned = _apply(user, model, chosen)
    added = sum(parameter.numel() for _, parameter in dtme.added_parameters(planned))
    own = sum(parameter.numel() for parameter in model.parameters())
    plain, own_time = _time_steps(user, (model, planned), batch, steps) if steps else (None, None)
    data = {
        "ratio": found.ratio,
        "flops": found.flops,
        "plain_flops": found.plain_flops,
        "streams": found.streams,
        "parameters": own,
        "added_parameters": added,
        "step_seconds": own_time,
        "plain_step_seconds": plain,
    }
    rows = {
        "FLOPs of inference, all tasks": f"{found.ratio:.2f} x  ({found.flops:.3g}, {found.plain_flops:.3g} without)",
        "parameters": f"+{added:,}  ({added / own:.2%} of {own:,})",
    }
    if plain and own_time:
        rows["time of a training step"] = f"{own_time / plain:.2f} x  ({own_time:.3f} s, {plain:.3f} s without)"
    streams = listed({block: str(count) for block, count in found.streams.items()})
    return Answer(data, f"{listed(rows, '')}\n\nStreams of tokens in each block:\n{streams}")


def _apply(user: UserFile, model: nn.Module, plan: Plan) -> nn.Module:
    import dtme

    twin = copy.deepcopy(model)
    return dtme.apply(twin, plan, branches=user.branches_of(twin))


def _time_steps(user: UserFile, models: tuple[nn.Module, nn.Module], batch: Any, steps: int) -> tuple[float, float]:
    """Median seconds of forward and backward of two models, in turn; a first turn does not count."""
    import torch

    wait: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else _go_on
    taken: list[list[float]] = [[], []]
    for turn in range(steps + 1):
        for model, seconds in zip(models, taken, strict=True):
            model.train()
            wait()
            begun = time.perf_counter()
            torch.stack([loss.sum() for loss in user.task_losses(model, batch).values()]).sum().backward()
            wait()
            if turn:
                seconds.append(time.perf_counter() - begun)
            model.zero_grad(set_to_none=True)
    plain, planned = map(statistics.median, taken)
    return plain, planned


def _go_on() -> None:
    """Nothing to wait for."""
