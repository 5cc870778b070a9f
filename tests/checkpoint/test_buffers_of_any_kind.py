"""What modules keep besides parameters, infinite or not a number by design, and float8, is saved and loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import TASKS, WIDTH, Attention, Block, Small, features, planned
from torch import Tensor, nn

import dtme


class Causal(Attention):
    """Attention whose mask of -inf is a persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return super().forward(x, self.mask)  # pyright: ignore[reportArgumentType]


class MaskedBias(nn.Linear):
    """A linear layer whose bias counts where a buffer is not a number."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 3 * WIDTH)
        self.register_buffer("bias_mask", torch.full((3 * WIDTH,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        mask: Any = self.bias_mask
        return F.linear(x, self.weight, self.bias * mask.nan_to_num(1.0))


class Counting(nn.LayerNorm):
    """A norm with a state that is no tensor."""

    calls = 3

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


class Float8(nn.Linear):
    """A linear layer whose weight is float8, in a buffer."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 3 * WIDTH)
        self.register_buffer("kept", self.weight.detach().to(torch.float8_e4m3fn))

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        kept: Any = self.kept
        return F.linear(x, kept.to(x.dtype), self.bias)


def with_attention(make: Callable[[], nn.Module]) -> Small:
    return Small(lambda: Block(attn=make()))


def with_projection(make: Callable[[], nn.Module]) -> Small:
    def block() -> nn.Module:
        made: Any = Block()
        made.attn.qkv = make()
        return made

    return Small(block)


def with_norm() -> Small:
    base = Small()
    base.norm = Counting(WIDTH).double()
    return base


MODELS: dict[str, Callable[[], Small]] = {
    "a mask of -inf": lambda: with_attention(Causal),
    "a mask of nan": lambda: with_projection(MaskedBias),
    "extra state": with_norm,
}


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:save_pretrained.base=True.*get_extra_state:UserWarning")
def test_it_comes_back(name: str, base: bool, tmp_path: Path):
    plain = MODELS[name]()
    model = planned(plain, modulate={"blocks.0": TASKS}, copies={"blocks.1": TASKS[1:]})
    dtme.save_pretrained(model, tmp_path, base=base)
    again = copy.deepcopy(plain)
    if base:
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.mul_(0.5)
    dtme.load_pretrained(again, tmp_path)
    torch.testing.assert_close(again(features()), model(features()))


def test_float8_comes_back(tmp_path: Path):
    def kept_float8() -> Small:
        base = with_projection(Float8)
        for block in base.blocks:
            own: Any = block
            own.attn.qkv.kept = own.attn.qkv.weight.detach().to(torch.float8_e4m3fn)
        return base

    plain = kept_float8()
    model = planned(plain, modulate={"blocks.0": TASKS})
    dtme.save_pretrained(model, tmp_path, base=True)
    again: Any = copy.deepcopy(plain)
    again.blocks[1].attn.qkv.kept = torch.zeros(3 * WIDTH, WIDTH).to(torch.float8_e4m3fn)
    dtme.load_pretrained(again, tmp_path)
    assert again.blocks[1].attn.qkv.kept.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(again(features()), model(features()))


def test_a_state_that_is_no_tensor_is_told(tmp_path: Path):
    model = planned(with_norm(), modulate={"blocks.0": TASKS})
    with pytest.warns(UserWarning, match=r"'norm\._extra_state' and what else modules keep .* is not saved"):
        dtme.save_pretrained(model, tmp_path, base=True)


def test_what_is_learnt_has_to_be_finite_all_the_same(tmp_path: Path):
    model = planned(with_attention(Causal), copies={"blocks.1": TASKS[1:]})
    with torch.no_grad():
        model.blocks[1].dtme.copies[0].attn.proj.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"blocks\.1\.dtme\.copies\.attn\.proj\.weight\.b.*not finite"):
        dtme.save_pretrained(model, tmp_path)
