"""What a block takes is found by trying it on a twin, which leaves no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import Block
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from dtme.attach.block_trial import find_late_part, try_insert
from dtme.trunk.call import BlockCall


def call(block: nn.Module) -> BlockCall:
    return BlockCall.read(block, (torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)),), {})


def tried(block: nn.Module, kind: str, part: str = "") -> str | None:
    return try_insert(block, call(block), kind, part)


class Mixer(nn.Module):
    """Mixes as many tokens as it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.map = nn.LayerNorm(16), nn.Linear(5, 5), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.map(self.mix(self.norm(tokens).mT).mT)


@pytest.mark.parametrize("kind", ["modulate", "expand", "adapt", "copies"])
@pytest.mark.parametrize("make", [lambda: Block(16, 2, False), lambda: Block(16, 2, True), lambda: TimmBlock(16, 2)])
def test_blocks_of_a_transformer_take_everything_or_say_why(make: Any, kind: str):
    torch.manual_seed(0)
    why = tried(make().eval(), kind)
    assert why is None or "takes no task tokens: earlier positions do not see later ones" in why


def test_a_block_that_mixes_positions_refuses_task_tokens_in_the_words_of_its_error():
    why = tried(Mixer(), "expand")
    assert why is not None
    assert "shapes cannot be multiplied" in why
    assert tried(Mixer(), "modulate") is None


def test_a_part_that_does_not_take_updates_says_so_by_name():
    why = tried(TimmBlock(16, 2), "adapt", "norm2")
    assert why is not None
    assert "block 'block.norm2' has no linear layer to adapt" in why


class Told(nn.Module):
    """Takes its tokens from a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        return self.down(self.up(given["tokens"]).relu())


class Telling(TimmBlock):
    def __init__(self) -> None:
        super().__init__(16, 2)
        self.mlp = Told()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp({"tokens": self.norm2(x)})


def test_a_part_that_is_given_no_tensor_is_no_place_and_its_block_is():
    block = Telling()
    assert find_late_part(block) == "mlp"
    assert tried(block, "adapt") is None
    assert "without a floating-point tensor" in (tried(block, "adapt", "mlp") or "")
    assert tried(TimmBlock(16, 2), "adapt", "mlp") is None


def test_what_a_call_holds_per_sample_is_cut_down_with_its_tokens():
    """A gain per sample, a table that all share, and one mask for each attention head of each sample."""

    class Gained(TimmBlock):
        def forward(self, x: Tensor, gain: Tensor, table: Tensor, mask: Tensor) -> Tensor:
            seen.append((len(x), len(gain), len(table), len(mask)))
            return super().forward(x * gain)

    seen: list[tuple[int, ...]] = []
    block = Gained(16, 2)
    given = {"gain": torch.ones(9, 1, 1), "table": torch.ones(7, 3), "mask": torch.zeros(18, 5, 5)}
    assert try_insert(block, BlockCall.read(block, (torch.randn(9, 5, 16),), given), "adapt") is None
    assert seen[-1] == (2 * 2, 2 * 2, 7, 2 * 2 * 2)  # two streams of two samples
    assert max(seen) == seen[-1]


def test_nothing_is_left_of_a_trial():
    block = TimmBlock(16, 2, proj_drop=0.5).train()
    handle = block.mlp.register_forward_hook(lambda *_: pytest.fail("a hook of somebody else ran in a trial"))
    before, state = copy.deepcopy(block.state_dict()), torch.get_rng_state()
    given = call(block)
    tokens = given.tokens.clone()
    for kind in ("modulate", "expand", "adapt"):
        assert try_insert(block, given, kind) is None
        assert try_insert(block, given, kind, "mlp") is None
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(given.tokens, tokens)
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    assert block.training
    assert block.mlp.training
    assert not any(hasattr(module, "dtme") for module in block.modules())
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in block.modules() if m is not block.mlp].count(
        0
    ) == len(list(block.modules())) - 1
    assert all(parameter.grad is None for parameter in block.parameters())
    handle.remove()


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (TimmBlock(16, 2), "mlp"),
        (nn.TransformerEncoderLayer(16, 2), None),  # its layers are its own members
        (Block(16, 2, False), None),  # a Sequential would run an insert as a member
        (Mixer(), None),
    ],
)
def test_the_late_part_is_the_mlp(block: nn.Module, part: str | None):
    assert find_late_part(block) == part
