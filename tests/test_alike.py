"""Blocks that are alike are counted once, and those that are not each for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dtme import flops as flops_module
from dtme.alike import likeness
from dtme.flops import FlopCount, ModelFlops
from models import Block, make_batches, timm_multitask, tiny_vit

CALL: tuple[tuple[Any, ...], dict[str, Any]] = ((torch.ones(2, 5, 16), 3, [1, None]), {"mask": torch.ones(2, 5)})


def block(change: Callable[[Any], object] | None = None) -> nn.Module:
    made = Block(16, 2, causal=False)
    if change is not None:
        change(made)
    return made


def test_weights_make_no_difference():
    assert likeness(block(), CALL) == likeness(block(), CALL)
    hash(likeness(block(), CALL))


@pytest.mark.parametrize(
    "change",
    [
        lambda made: setattr(made.attention, "heads", 4),
        lambda made: setattr(made.attention, "causal", True),
        lambda made: setattr(made, "window", (7, 7)),
        lambda made: setattr(made, "config", object()),
        lambda made: setattr(made, "mlp", nn.Sequential(*made.mlp, nn.Identity())),
        lambda made: setattr(made.mlp, "1", nn.ReLU()),
        lambda made: setattr(made.attention, "out", nn.Linear(16, 16, bias=False)),
        lambda made: made.register_buffer("bias", torch.zeros(5, 5)),
        lambda made: made.attention.double(),
        lambda made: made.norm1.register_forward_hook(lambda *_: None),
        lambda made: made.register_buffer("index", torch.tensor([0, 1])),
        lambda made: setattr(made, "norm2", made.norm1),
        lambda made: made.eval(),
    ],
)
def test_what_a_block_is_makes_one(change: Callable[[Any], object]):
    assert likeness(block(change), CALL) != likeness(block(), CALL)


@pytest.mark.parametrize(
    "call",
    [
        ((torch.ones(2, 6, 16), 3, [1, None]), {"mask": torch.ones(2, 5)}),
        ((torch.ones(2, 5, 16).double(), 3, [1, None]), {"mask": torch.ones(2, 5)}),
        ((torch.ones(2, 5, 16), 4, [1, None]), {"mask": torch.ones(2, 5)}),
        ((torch.ones(2, 5, 16), True, [1, None]), {"mask": torch.ones(2, 5)}),
        ((torch.ones(2, 5, 16), 3, [1, 1]), {"mask": torch.ones(2, 5)}),
        ((torch.ones(2, 5, 16), 3, [1, None]), {"bias": torch.ones(2, 5)}),
        ((torch.ones(2, 5, 16), 3, [1, object()]), {"mask": torch.ones(2, 5)}),
    ],
)
def test_how_it_is_called_makes_one(call: Any):
    assert likeness(block(), call) != likeness(block(), CALL)


def test_values_of_indices_and_of_single_numbers_are_looked_at():
    def of(index: Tensor) -> Any:
        return likeness(block(lambda made: made.register_buffer("index", index)), ((torch.ones(2, 5, 16), index), {}))

    assert of(torch.tensor([0, 5])) == of(torch.tensor([0, 5])) != of(torch.tensor([0, 4]))
    assert of(torch.tensor(0.5)) == of(torch.tensor(0.5)) != of(torch.tensor(0.25))
    assert of(torch.tensor([0.5, 1.0])) == of(torch.tensor([0.25, 1.0]))


def test_one_tensor_twice_is_not_two_tensors():
    x, y = torch.ones(2, 5, 16), torch.ones(2, 5, 16)
    assert likeness(block(), ((x, x), {})) == likeness(block(), ((y, y), {})) != likeness(block(), ((x, y), {}))


def test_hooks_of_inner_modules_are_compared_and_those_of_the_block_left_out():
    def ours(*_: Any) -> None: ...

    def other(*_: Any) -> None: ...

    def of(inner: Any, outer: Any) -> Any:
        made: Any = block()
        made.norm1.register_forward_hook(inner)
        made.register_forward_hook(outer)
        return likeness(made, CALL)

    assert of(ours, ours) == of(ours, other) != of(other, ours)


def test_what_others_hold_as_well_is_not_alike():
    one, other = block(), block()
    assert likeness(one, CALL, {one: 1}) == likeness(other, CALL, {}) != likeness(other, CALL, {other: 2})


class Held:
    """Something whose value nothing is known of."""


def test_an_object_in_the_call_is_never_alike_and_one_in_the_block_is_itself():
    held, tokens = Held(), torch.ones(2, 5, 16)
    assert likeness(block(), ((tokens, held), {})) != likeness(block(), ((tokens, held), {}))
    same = [likeness(block(lambda made: setattr(made, "config", held)), CALL) for _ in range(2)]
    assert same[0] == same[1] != likeness(block(lambda made: setattr(made, "config", Held())), CALL)


def test_an_object_that_is_gone_is_not_taken_for_another_at_its_address():
    seen = {likeness(block(lambda made: setattr(made, "config", Held())), CALL) for _ in range(20)}
    assert len(seen) == 20


@pytest.mark.parametrize("sharing", [(0, 1), (1, 2)])
def test_blocks_that_share_their_last_part_have_none_that_streams_part_in(
    sharing: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    model: Any = timm_multitask(depth=4)
    blocks = model.trunk.blocks
    blocks[sharing[1]].mlp = blocks[sharing[0]].mlp
    _, found = counted(model, monkeypatch)
    late = [block.late for block in found.blocks.values()]
    assert late == [None if place in sharing else f"trunk.blocks.{place}.mlp" for place in range(4)]


def test_a_call_that_cannot_be_looked_at_is_told_of_and_leaves_the_pass_alone():
    model: Any = tiny_vit(depth=2)
    endless: list[Any] = []
    endless.append(endless)
    forward = model.blocks[1].forward
    model.blocks[1].forward = lambda tokens, beside: forward(tokens)
    first, second = model.blocks
    model.blocks = nn.ModuleList([first])
    (batch,) = make_batches(model, (3,))
    count = FlopCount(nn.ModuleList([first, second]), ["0", "1"])
    with count.first_pass():
        tokens = second(first(model.embed(*batch["inputs"])), endless)
    assert tokens.shape == (3, 5, 16)
    assert "the FLOPs of block '1' cannot be counted" in str(count.flops_or_why_not())


def counted(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], ModelFlops]:
    """Which blocks were counted, and what was found."""
    blocks = [name for name, _ in model.named_modules() if name.rpartition(".")[0].endswith("blocks")]
    (batch,) = make_batches(model, (3,))  # pyright: ignore[reportArgumentType]
    names = []

    def noted(name: str, *rest: Any) -> Any:
        names.append(name)
        return count_block(name, *rest)

    count_block = flops_module.count_block
    with monkeypatch.context() as patched:
        patched.setattr(flops_module, "count_block", noted)
        count = FlopCount(model, blocks, late=True)
        with count.first_pass():
            model(*batch["inputs"])
    return names, count.flops()


def test_a_trunk_of_one_block_again_and_again_is_counted_once(monkeypatch: pytest.MonkeyPatch):
    names, found = counted(timm_multitask(depth=6), monkeypatch)
    assert names == ["trunk.blocks.0"]
    monkeypatch.setattr(flops_module, "likeness", lambda *_: object())
    names, each = counted(timm_multitask(depth=6), monkeypatch)
    assert names == [f"trunk.blocks.{place}" for place in range(6)]
    assert found == each
    assert [block.late for block in found.blocks.values()] == [f"trunk.blocks.{place}.mlp" for place in range(6)]


def test_a_wider_block_is_counted_for_itself(monkeypatch: pytest.MonkeyPatch):
    model: Any = tiny_vit(depth=4)
    model.blocks[2].mlp = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    names, found = counted(model, monkeypatch)
    assert names == ["blocks.0", "blocks.2"]
    sizes = [block.stream for block in found.blocks.values()]
    assert sizes[2] > sizes[0] == sizes[1] == sizes[3]


class Refusing(nn.Module):
    """A block that takes no task tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 5)
        self.map = nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.map(self.mix(tokens.mT).mT)


def test_a_refusal_names_its_own_block(monkeypatch: pytest.MonkeyPatch):
    model: Any = tiny_vit(depth=3)
    model.blocks = nn.ModuleList(Refusing() for _ in range(3))
    _, found = counted(model, monkeypatch)
    for name, own in found.blocks.items():
        assert own.task_tokens is None
        assert name in own.refusals["expand"]
