"""Streams behave, under a model's own code, as one tensor does for each task."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from models import timm_multitask
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import dtme
from dtme.streams.folding import fold, part
from dtme.streams.groups import common, refine
from dtme.streams.tensor import Streams, gather, stream_of

GROUPS = (("a",), ("b", "c"))


def two(shape: tuple[int, ...] = (2, 3, 4)) -> Streams:
    """Streams of `a` and of `b` and `c`, with values of either sign and no two alike."""
    return part(torch.randn(2 * shape[0], *shape[1:], dtype=torch.float64), GROUPS, 0)


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "add a plain tensor": lambda x: x + torch.arange(float(x.shape[-1])),
    "plain tensor minus": lambda x: torch.arange(float(x.shape[-1])) - x,
    "scalar": lambda x: 2 * x - 1,
    "gelu": F.gelu,
    "norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "linear": lambda x: F.linear(x, torch.linspace(-1, 1, 3 * x.shape[-1], dtype=x.dtype).view(3, -1)),
    "last dimensions": lambda x: x.transpose(-1, -2),
    "flatten": lambda x: x.flatten(1),
    "remembered reshape": lambda x: x.reshape(x.shape[0], -1).view(len(x), 1, -1),
    "first position": lambda x: x[:, :1],
    "mean": lambda x: x.mean(1, keepdim=True),
    "softmax": lambda x: x.softmax(-1),
    "largest": lambda x: x.max(-1, keepdim=True).values,
    "concatenate": lambda x: torch.cat([x, torch.ones(1, dtype=x.dtype).expand(*x.shape[:-1], 1)], -1),
    "with itself": lambda x: torch.stack([x, x * x], 1).sum(1),
    "half of the split": lambda x: x.split(1, -1)[0],
    "unbound": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "masked": lambda x: x.masked_fill(x < 0, 0.5),
    "product": lambda x: x.flatten(1) @ x.flatten(1).mT,
    "iterated": lambda x: torch.stack([row + 1 for row in x]),
}


@given(st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=5), st.integers(0, 9))
def test_an_operation_on_streams_is_that_operation_on_each(names: list[str], seed: int):
    torch.manual_seed(seed)
    together = two()
    apart = {task: stream_of(together, task) for task in "abc"}
    for name in names:
        if min(together.shape[1:]) == 0 or together.ndim < 2:
            break
        together = OPERATIONS[name](together)
        apart = {task: OPERATIONS[name](stream) for task, stream in apart.items()}
    assert isinstance(together, Streams)
    assert together._groups == GROUPS
    for task, stream in apart.items():
        assert not isinstance(stream_of(together, task), Streams)
        assert torch.equal(stream_of(together, task), stream)


def test_nested_outputs_are_streams_and_keep_their_type():
    values, indices = two().max(-1)
    both = two().topk(2, -1)
    assert type(both).__name__ == "topk"
    for output in (values, indices, *both, *two().split(1, 1), *torch.unbind(two())):
        assert isinstance(output, Streams)
    assert torch.equal(
        stream_of(indices, "b"), stream_of(values, "b").new_tensor(stream_of(indices, "b").tolist()).long()
    )


def test_gradients_reach_each_stream():
    base = torch.randn(4, 3, requires_grad=True)
    loss = stream_of((part(base * 1, GROUPS, 0) ** 2).sum(), "b")
    loss.backward()
    assert torch.equal(base.grad, torch.cat([torch.zeros(2, 3), 2 * base.detach()[2:]]))


class Reversed(torch.autograd.Function):
    """The reversal of gradients that adversarial training uses; autograd hands it one tensor and knows no other."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, how: str) -> Tensor:
        return {"itself": tokens, "a view": tokens.view_as(tokens), "a copy": tokens.clone()}[how]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return -gradients[0], None


@pytest.mark.parametrize("how", ["itself", "a view", "a copy"])
def test_a_function_of_autograd_that_would_lose_gradients_is_named(how: str):
    weight = torch.randn(4, 3, requires_grad=True)
    changed = Reversed.apply(part(weight * 1, GROUPS, 0), how)
    for use in (lambda: stream_of(changed, "b"), lambda: changed + 1, lambda: fold(changed, GROUPS, 0)):
        with pytest.raises(
            RuntimeError, match=r"^Reversed, a torch.autograd.Function, took the streams of .*in the branches"
        ):
            use()
    with torch.no_grad():  # nothing to lose
        assert torch.equal(stream_of(Reversed.apply(part(weight * 1, GROUPS, 0), how), "b"), weight[2:])


def test_reentrant_checkpointing_of_streams_says_what_to_use():
    model = timm_multitask(("depth", "scene")).train()
    blocks = model.trunk.blocks
    dtme.apply(model, dtme.Plan(("depth", "scene"), {"trunk.blocks.1": ("scene",)}))
    tokens = torch.randn(2, 5, blocks[0].norm1.weight.shape[0], requires_grad=True)
    for block in blocks[:2]:
        tokens = checkpoint(block, tokens, use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"^CheckpointFunction.*say use_reentrant=False"):
        blocks[2](tokens)


@pytest.mark.parametrize(
    "write",
    [
        lambda shared, streams: shared.add_(streams),
        lambda shared, streams: shared.copy_(streams),
        operator.iadd,
        lambda shared, streams: operator.ior(shared > 0, streams > 0),
        lambda shared, streams: shared.__setitem__(0, streams[0]),
        lambda shared, streams: torch.add(shared, streams, out=shared),
        lambda shared, streams: shared.index_add_(0, torch.tensor([0, 1]), streams),
    ],
)
def test_writing_streams_into_a_shared_tensor_is_refused(write: Callable[[Tensor, Tensor], object]):
    shared = torch.zeros(2, 3, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"a tensor that all tasks share\. Write it out of place"):
        write(shared, two())
    assert not shared.any()


def test_writing_into_streams_writes_into_each():
    streams = two() * 1
    streams[:, 0] = 0
    streams.mul_(2)
    for task in "abc":
        assert not stream_of(streams, task)[:, 0].any()


@pytest.mark.parametrize(
    "ask",
    [lambda x: x.sum().item(), lambda x: float(x.sum()), lambda x: bool(x.sum() > x.sum() - 1) and x.tolist(),
     lambda x: x.numpy(), lambda x: x.sum().backward(), lambda x: x[0, 0, 0].item() in x],
)  # fmt: skip
def test_one_value_of_streams_that_differ_is_refused_with_the_remedy(ask: Callable[[Tensor], object]):
    with pytest.raises(RuntimeError, match=r"did not leave the trunk by a task's branch.*branches=.*dtme\.tasks"):
        ask(two())


def test_one_value_of_streams_that_agree_is_given():
    ones = gather([torch.ones(2), torch.ones(2)], GROUPS)
    assert ones.sum().item() == 2
    assert bool((ones > 0).all())
    assert (ones.shape, ones.dtype, ones.ndim, len(ones), ones.device.type) == ((2,), torch.float32, 1, 2, "cpu")
    assert repr(ones) == "Streams((('a',), ('b', 'c')), shape=(2,), dtype=torch.float32)"


def test_coarse_fine_and_crossing_streams_mix():
    def numbered(*groups: tuple[str, ...]) -> Streams:
        return gather([torch.tensor([10.0**i]) for i in range(len(groups))], groups)

    coarse, fine, crossing = (
        numbered(("a", "b"), ("c",)),
        numbered(("a",), ("b",), ("c",)),
        numbered(("a",), ("b", "c")),
    )
    for mixed in (coarse + fine, fine + coarse):
        assert [stream_of(mixed, task).item() for task in "abc"] == [2, 11, 110]
    assert [stream_of(coarse + crossing, task).item() for task in "abc"] == [2, 11, 20]


def test_a_task_not_computed_has_no_stream():
    with pytest.raises(KeyError):
        stream_of(two(), "d")
    plain = torch.ones(1)
    assert stream_of(plain, "d") is plain


@given(st.data())
def test_refining_splits_off_exactly_the_parting_tasks(data: st.DataObject):
    tasks = "abcdef"[: data.draw(st.integers(1, 6))]
    groups = (tuple(tasks),)
    for _ in range(3):
        parting = data.draw(st.lists(st.sampled_from(tasks), unique=True))
        finer = refine(groups, parting)
        assert sorted(task for group in finer for task in group) == sorted(tasks)
        assert all(any(set(group) <= set(whole) for whole in groups) for group in finer)
        assert all((task,) in finer for task in parting)
        assert refine(finer, parting) == finer
        assert common(groups, finer) == common(finer, groups) == finer
        groups = finer


@pytest.mark.parametrize("dim", [0, 1])
def test_folding_undoes_parting(dim: int):
    folded = torch.randn(4, 6, 2)
    streams = part(folded, GROUPS, dim)
    assert fold(streams, GROUPS, dim) is folded
    assert torch.equal(fold(streams * 1, GROUPS, dim), folded)
    finer = (("a",), ("b",), ("c",))
    one, other = folded.chunk(2, dim)
    assert torch.equal(fold(streams, finer, dim), torch.cat([one, other, other], dim))
    assert torch.equal(fold(folded, GROUPS, dim), torch.cat([folded, folded], dim))
    assert fold(folded, (("a", "b", "c"),), dim) is folded
