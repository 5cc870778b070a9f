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


class Held:
    """Something whose value nothing is known of."""


def test_an_object_that_is_gone_is_not_taken_for_another_at_its_address():
    seen = {likeness(block(), ((torch.ones(2, 5, 16), Held()), {})) for _ in range(20)}
    assert len(seen) == 20


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
