"""Ways past `__torch_function__`, and writing in place: what stands between the blocks is done to each stream."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import TASKS, Small, assert_each_task_is_alone, assert_gradients_are_those_by_hand, features, planned
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchScript is on its way out

    @torch.jit.script
    def gate(x: Tensor) -> Tensor:
        """Scripted code runs below the level at which tensors of other classes are asked."""
        return x * torch.sigmoid(1.7 * x)


def in_place(x: Tensor) -> Tensor:
    x += torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)
    return x.mul_(1.5)


def through_data(x: Tensor) -> Tensor:
    x.data = x.data.clamp(-0.5, 0.5)
    return x


def by_index(x: Tensor) -> Tensor:
    x[:, 0] = x[:, 0] * 2
    return x


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "scripted": lambda x: gate(x),  # a model is copied here, and scripted functions are not
    "vmap": torch.vmap(lambda sample: sample * sample.std()),
    "vmap over tokens": torch.vmap(torch.vmap(lambda token: token / token.norm())),
    "in place": in_place,
    "by index": by_index,
    "data": through_data,
    "detach_": lambda x: x + x.clone().detach_().abs(),
}


class Between(Small):
    """A `Small` with something between its blocks and behind the last."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between

    def trunk(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = self.between(block(x))
        return self.norm(x)


@pytest.mark.parametrize("name", BETWEEN)
def test_it_is_done_to_each_stream(name: str):
    base = Between(BETWEEN[name])
    model = planned(base, modulate={"blocks.1": TASKS})
    with torch.no_grad():
        assert_each_task_is_alone(base, model, features())
    if name != "data":  # autograd knows nothing of what is written so
        assert_each_task_is_alone(base, model, features())
        assert_gradients_are_those_by_hand(base, model, features())


@pytest.mark.parametrize("module", ["blocks.2", "blocks.2.mlp", "heads.a"])
def test_backward_hooks_of_modules_behind_the_parting(module: str):
    base = Small()
    model = planned(base, modulate={"blocks.1": TASKS})
    seen: list[Any] = []
    model.get_submodule(module).register_full_backward_hook(lambda _, taken, given: seen.append(given[0].shape))
    assert_gradients_are_those_by_hand(base, model, features())
    assert len(seen) == 1


def test_a_backward_hook_where_streams_would_be_lost_says_where_to_put_it():
    base = Small()
    model = planned(base, modulate={"blocks.1": TASKS})
    model.norm.register_full_backward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"BackwardHookFunction.*Register the backward hook .*on a block"):
        model(features())


def test_a_view_that_would_not_see_what_is_written_is_named():
    def write(x: Tensor) -> Tensor:
        first = x[:, :1]
        x += 1
        return torch.cat([first, x], 1)

    model = planned(Between(write), modulate={"blocks.0": TASKS})
    with pytest.raises(RuntimeError, match=r"add_: streams .*Write x = x \+ y in place of x \+= y"):
        model(features())


def losses_of(model: Small) -> Tensor:
    return torch.stack([output.square().mean() for output in model(features()).values()])


PLANS: list[dict[str, Any]] = [
    {"modulate": {"blocks.1": TASKS}, "copies": {"blocks.2": TASKS[1:2]}},
    {"expand": {"blocks.1": TASKS[:1]}},
    {"adapt": {"blocks.1": TASKS}, "rank": 2, "modulate": {"blocks.0": TASKS[:1]}},
]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of gradients under vmap, which the engine takes
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "+".join(plan))
def test_torchjds_engine_counts_every_parameter_of_streams_and_inserts(plan: dict[str, Any]):
    engine = pytest.importorskip("torchjd.autogram").Engine
    model = planned(Small(), **plan)
    rows = [
        torch.cat([torch.zeros(q.numel()).double() if g is None else g.flatten() for g, q in zip(of, own, strict=True)])
        for own in [list(model.parameters())]
        for of in [torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True) for loss in losses_of(model)]
    ]
    jacobian = torch.stack(rows)
    kept = engine(model, batch_dim=None)  # behind the blocks stands a norm, which every stream runs through
    torch.testing.assert_close(kept.compute_gramian(losses_of(model)), jacobian @ jacobian.T)


def test_torchjds_engine_by_rows_is_refused():
    engine = pytest.importorskip("torchjd.autogram").Engine
    model = planned(Small(), modulate={"blocks.1": TASKS})
    kept = engine(model, batch_dim=0)
    with pytest.raises(
        RuntimeError, match=r"Engine\(batch_dim=.*several streams.*batch_dim=None, or use torchjd\.autojac"
    ):
        model(features())
    del kept
