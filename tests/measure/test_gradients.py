"""Each task's gradient by the tokens of every block: that of a backward pass of its loss alone, however blocks are used."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from models import TinyViT, make_batches, task_losses, timm_multitask, tiny_vit, torch_encoder_multitask
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dtme
from dtme.measure.capture import capture
from dtme.measure.gradients import compute_token_gradients
from dtme.trunk.blocks import find_blocks

TASKS = ("depth", "semseg", "scene")


def ours(model: nn.Module, batch: Any, blocks: Any = None) -> dict[str, dict[str, Tensor]]:
    with capture(find_blocks(model, blocks), differentiable=True) as caught:
        with caught.reading(batch):
            losses = task_losses(model, batch)
        found = dict(compute_token_gradients(losses, caught, 0))
        assert not losses
        return found


def literal(model: nn.Module, batch: Any, blocks: Any = None) -> dict[str, dict[str, Tensor]]:
    """A forward pass of its own for each task, a backward pass for each block, and the tokens of blocks kept by hand."""
    found: dict[str, dict[str, Tensor]] = {}
    expanded = any(getattr(module, "is_inserted", False) for module in model.modules())
    for task in batch["targets"]:
        entered: dict[str, list[Tensor]] = {}
        handles = []
        for name, block in find_blocks(model, blocks).items():

            def keep(module: nn.Module, args: Any, name: str = name, entered: Any = entered) -> Any:
                tokens = args[0] if args[0].requires_grad else args[0].clone().requires_grad_()
                entered.setdefault(name, []).append(tokens)
                return (tokens, *args[1:])

            handles.append(block.register_forward_pre_hook(keep, prepend=True))
        with dtme.tasks(model, task) if expanded else nullcontext():
            loss = task_losses(model, {**batch, "targets": {task: batch["targets"][task]}})[task]
        for handle in handles:
            handle.remove()
        for name, runs in entered.items():
            grads = torch.autograd.grad(loss, runs, retain_graph=True, allow_unused=True, materialize_grads=True)
            found.setdefault(name, {})[task] = torch.cat(grads, 1)
    return found


def assert_alike(model: nn.Module, blocks: Any = None) -> None:
    model = model.double().eval().requires_grad_(False)
    (batch,) = make_batches(model, (3,))  # pyright: ignore[reportArgumentType]
    found, expected = ours(model, batch, blocks), literal(model, batch, blocks)
    assert found.keys() == expected.keys() == find_blocks(model, blocks).keys()
    for name, of_tasks in expected.items():
        assert found[name].keys() == of_tasks.keys()
        for task, gradient in of_tasks.items():
            torch.testing.assert_close(found[name][task], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [tiny_vit, timm_multitask])
def test_a_plain_trunk(make: Any):
    assert_alike(make())


class Trunk(TinyViT):
    """Blocks in a way of its own from the first tokens to what heads read."""

    def __init__(self, way: Callable[[nn.ModuleList, Tensor], Tensor]) -> None:
        super().__init__(TASKS)
        self.way = way

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        tokens = self.way(self.blocks, self.embed(image))
        return {task: head(self.norm(tokens), len(image)) for task, head in self.heads.items()}


def heads_read_all_blocks(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    read = torch.zeros_like(tokens)
    for number, block in enumerate(blocks):
        tokens = block(tokens)
        read = read + (number + 1) * tokens.sin()
    return read


def two_blocks_read_the_same_tokens(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    tokens = blocks[3](tokens)
    return blocks[2](blocks[0](tokens) + blocks[1](tokens)) + tokens


def blocks_run_twice(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    for block in (*blocks, *blocks):
        tokens = block(tokens)
    return tokens


def outputs_are_written_in_place(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    for block in blocks:
        tokens = block(tokens)
        tokens += 1.0
        tokens.flatten(1).mul_(0.9)
    return tokens


def ways_around_two_blocks(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    first = blocks[0](tokens)
    second = blocks[1](first)
    return blocks[3](blocks[2](second) + first.tanh()) + tokens


def what_hooks_collect(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handles = [block.register_forward_hook(lambda block, args, output: kept.append(output)) for block in blocks]
    for block in blocks:
        tokens = block(tokens)
    for handle in handles:
        handle.remove()
    return tokens + kept[0].sin() + kept[2].cos()


@pytest.mark.parametrize(
    "way",
    [
        heads_read_all_blocks,
        two_blocks_read_the_same_tokens,
        blocks_run_twice,
        outputs_are_written_in_place,
        ways_around_two_blocks,
        what_hooks_collect,
    ],
)
def test_any_way_through_the_blocks(way: Any):
    assert_alike(Trunk(way))


def test_streams_that_have_parted():
    model = timm_multitask(TASKS)
    first, last = "trunk.blocks.1", "trunk.blocks.3"
    dtme.apply(model, dtme.Plan(TASKS, modulate={first: TASKS}, adapt={last: TASKS}))
    assert_alike(model)


def test_padding_has_no_gradient():
    model = torch_encoder_multitask(True).double().eval()
    (batch,) = make_batches(model, (3,))
    for of_tasks in ours(model, batch).values():
        for gradient in of_tasks.values():
            assert not bool(gradient[batch["inputs"][1]].any())
            assert bool(gradient[~batch["inputs"][1]].any(-1).all())


def test_a_loss_that_takes_gradients_through_the_trunk():
    def way(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
        with torch.enable_grad():
            made = tokens = tokens.detach().requires_grad_()
            for block in blocks:
                made = block(made)
            (forces,) = torch.autograd.grad(made.square().sum(), tokens, create_graph=True)
        return made + forces

    assert_alike(Trunk(way))


@pytest.mark.parametrize("every", [1, 2, 4])
def test_under_activation_checkpointing(every: int):
    """Blocks that one checkpoint computes again together give what they give without it, once more per task."""
    model = tiny_vit(TASKS).double().eval().requires_grad_(False)
    (batch,) = make_batches(model, (3,))
    expected, runs = literal(model, batch), []

    class Checkpointed(nn.ModuleList):
        def __iter__(self) -> Any:
            own = [self[place] for place in range(len(self))]
            for first in range(0, len(own), every):
                run = nn.Sequential(*own[first : first + every])
                yield lambda tokens, run=run: checkpoint(run, tokens, use_reentrant=False)

    model.blocks = Checkpointed(model.blocks)
    for block in (model.blocks[place] for place in range(4)):
        block.register_forward_pre_hook(lambda block, args: runs.append(block))
    found = ours(model, batch, r"blocks\.\d+")
    assert len(runs) == 4 + 4 * len(TASKS)
    for name, of_tasks in expected.items():
        for task, gradient in of_tasks.items():
            torch.testing.assert_close(found[name][task], gradient, rtol=1e-9, atol=1e-12)


def test_hooks_on_the_way_back_see_each_task_once():
    model = tiny_vit(TASKS).eval().requires_grad_(False)
    seen: list[int] = []
    model.blocks[1].register_full_backward_hook(lambda block, coming, given: seen.append(1))
    (batch,) = make_batches(model, (3,))
    ours(model, batch)
    assert len(seen) == len(TASKS)


class Kept(torch.autograd.Function):
    """Keeps a tensor for the way back, and shows it to who asks whether it is still there."""

    alive: Any = None

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        kept = x.sin()
        Kept.alive = weakref.ref(kept.untyped_storage())
        ctx.save_for_backward(kept)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        _ = ctx.saved_tensors
        return 2 * gradients[0]


@pytest.mark.parametrize("last", ["a loss", "a loss without a gradient"])
def test_the_last_pass_frees_the_graph(last: str):
    block = nn.TransformerEncoderLayer(8, 2, batch_first=True, dropout=0.0).requires_grad_(False)
    with capture({"block": block}, differentiable=True) as caught:
        with caught.reading(None):
            tokens = Kept.apply(block(torch.randn(2, 3, 8)))
        assert isinstance(tokens, Tensor)
        losses = {"a": tokens.sum(), "b": tokens.square().sum()}
        if last != "a loss":
            losses["c"] = torch.zeros(())
        del tokens
        found = compute_token_gradients(losses, caught, 0)
        next(found)
        assert Kept.alive() is None


def test_what_was_compared_is_let_go():
    model = tiny_vit(TASKS).eval().requires_grad_(False)
    (batch,) = make_batches(model, (3,))
    with capture(find_blocks(model), differentiable=True) as caught:
        with caught.reading(batch):
            losses = task_losses(model, batch)
        before: list[weakref.ref[Tensor]] = []
        for _, gradients in compute_token_gradients(losses, caught, 0):
            assert all(gradient() is None for gradient in before)
            before = [weakref.ref(gradient) for gradient in gradients.values()]
            del gradients


def test_no_parameter_gets_a_gradient():
    model: nn.Module = tiny_vit()
    dtme.analyze(model, task_losses, make_batches(model, (2,) * 3))  # pyright: ignore[reportArgumentType]
    assert all(parameter.grad is None for parameter in model.parameters())
