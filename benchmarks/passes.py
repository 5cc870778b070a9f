"""Training steps and inference passes: of a plan against its FLOPs, of one task against the unmodified model, of rivals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import dtme
from benchmarks.clock import Middle, in_turn
from benchmarks.subject import DEVICE, TASKS, Size, first_half, flops, inference, last_half
from dtme.inserts.low_rank import low_rank_update
from experiments.baselines import LoRAPerTask, branch

Pass = Callable[[nn.Module, dict[str, Tensor]], None]


def published(model: nn.Module) -> dtme.Plan:
    """Modulators and task tokens, each in half of the blocks, as the paper has them."""
    return dtme.Plan(TASKS, modulate=last_half(model), expand=first_half(model))


def late(model: nn.Module) -> dtme.Plan:
    """Both in the last half."""
    return dtme.Plan(TASKS, modulate=last_half(model), expand=last_half(model))


def adapted(model: nn.Module) -> dtme.Plan:
    """Modulators and low-rank updates in the last half."""
    return dtme.Plan(TASKS, modulate=last_half(model), adapt=last_half(model))


def per_flop(size: Size, run: Pass, make: Callable[[nn.Module], dtme.Plan], turns: int) -> Middle:
    """Time per FLOP of an applied plan over that of the unmodified model on as many rows as the streams are."""
    base, batch, many = size.model(), size.batch(), size.batch(times=len(TASKS))
    applied = dtme.apply(copy.deepcopy(base), make(base))
    more = flops(lambda: run(applied, batch)) / flops(lambda: run(base, many))
    taken = in_turn({"applied": lambda: run(applied, batch), "base": lambda: run(base, many)}, turns)
    return taken.ratio("applied", "base").times(1 / more)


def late_updates(model: nn.Module) -> dtme.Plan:
    """Low-rank updates in the last half."""
    return dtme.Plan(TASKS, adapt=last_half(model))


def copies(model: nn.Module) -> dtme.Plan:
    """A copy of each block of the last half for every task but the first."""
    return dtme.Plan(TASKS, copies=dict.fromkeys(last_half(model), TASKS[1:]))


def on_top_of_modulation(size: Size, run: Pass, turns: int) -> Middle:
    """A pass with low-rank updates over the same pass without them."""
    base, batch = size.model(), size.batch()
    without = dtme.apply(copy.deepcopy(base), dtme.Plan(TASKS, modulate=last_half(base)))
    with_them = dtme.apply(copy.deepcopy(base), adapted(base))
    taken = in_turn({"with": lambda: run(with_them, batch), "without": lambda: run(without, batch)}, turns)
    return taken.ratio("with", "without")


@torch.no_grad()
def batched_product(size: Size, turns: int) -> Middle:
    """The low-rank update of one layer, for all streams, over its two bare products."""
    model, lanes, rank = size.model(), len(TASKS), 4
    width, tokens = model.trunk.embed_dim, (size.pixels // 16) ** 2 + 1
    inputs = torch.randn(lanes * size.samples, tokens, width, device=DEVICE)
    outputs = torch.randn(lanes * size.samples, tokens, 4 * width, device=DEVICE)
    down, up = torch.randn(lanes, rank, width, device=DEVICE), torch.zeros(lanes, 4 * width, rank, device=DEVICE)
    flat, sums = inputs.view(lanes, -1, width), outputs.view(lanes, -1, 4 * width)

    def bare() -> None:
        for _ in range(10):
            sums.baddbmm_(torch.bmm(flat, down.mT), up.mT)

    def ours() -> None:
        for _ in range(10):
            low_rank_update(inputs, outputs, down, up, 0, fresh=True)

    return in_turn({"ours": ours, "bare": bare}, turns).ratio("ours", "bare")


def by_hand(model: nn.Module) -> nn.Module:
    """The `published` plan for one task by bare hooks, by one who knows the model; all as it is at the start."""
    blocks, width = dict(model.named_modules()), model.trunk.embed_dim
    scale, shift = torch.ones(width, device=DEVICE), torch.zeros(width, device=DEVICE)
    token = torch.zeros(1, 1, width, device=DEVICE)
    plan = published(model)
    for name in plan.modulate:
        blocks[name].register_forward_pre_hook(lambda _, args: (torch.addcmul(shift, args[0], scale),))
    for name in plan.expand:
        blocks[name].register_forward_pre_hook(
            lambda _, args: (torch.cat([args[0], token.expand(len(args[0]), -1, -1)], 1),)
        )
        blocks[name].register_forward_hook(lambda _, args, output: output[:, :-1])
    return model


def one_task(
    size: Size,
    make: Callable[[nn.Module], dtme.Plan],
    turns: int,
    *,
    compiled: bool = False,
    changed: Callable[[nn.Module], nn.Module] | None = None,
) -> Middle:
    """Inference of one task through an expanded model over the unmodified, or `changed`, model of that task alone."""
    base, batch = size.model(), size.batch()
    applied: Any = dtme.apply(copy.deepcopy(base), make(base))
    alone: Any = copy.deepcopy(base) if changed is None else changed(copy.deepcopy(base))
    alone.heads = nn.ModuleDict({TASKS[0]: base.heads[TASKS[0]]})
    run, plain = (torch.compile(applied), torch.compile(alone)) if compiled else (applied, alone)

    def chosen() -> None:
        with dtme.tasks(applied, TASKS[0]):
            inference(run, batch)

    return in_turn({"applied": chosen, "base": lambda: inference(plain, batch)}, turns).ratio("applied", "base")


def rivals(size: Size, run: Pass, turns: int) -> dict[str, Middle]:
    """What others cost, as multiples of a plan of the same kind: K single-task models, and a pass per task."""
    base, batch = size.model(), size.batch()
    singles = [copy.deepcopy(base) for _ in TASKS]
    for task, single in zip(TASKS, singles, strict=True):
        single.heads = nn.ModuleDict({task: base.heads[task]})
    ours = dtme.apply(copy.deepcopy(base), late(base))
    low_rank = dtme.apply(copy.deepcopy(base), late_updates(base))
    lora = LoRAPerTask(copy.deepcopy(base), TASKS, rank=4, blocks=list(last_half(base)))
    own_blocks = dtme.apply(copy.deepcopy(base), copies(base))
    branched = branch(copy.deepcopy(base), TASKS, len(last_half(base)))
    works = {
        "singles": lambda: [run(single, batch) for single in singles],
        "ours": lambda: run(ours, batch),
        "lora": lambda: run(lora, batch),
        "adapted": lambda: run(low_rank, batch),
        "branched": lambda: run(branched, batch),
        "copied": lambda: run(own_blocks, batch),
    }
    taken = in_turn(works, turns)
    return {
        "K single-task models": taken.ratio("singles", "ours"),
        "one LoRA per task": taken.ratio("lora", "adapted"),
        "own blocks, a pass per task": taken.ratio("branched", "copied"),
    }
