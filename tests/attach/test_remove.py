"""`remove` takes everything out, whatever has become of the model since."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small import TASKS, WIDTH, Block, Small, features, planned
from torch import Tensor, nn

import dtme


class SharedAttention(nn.Module):
    """A block around an attention that others hold, too."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.norm, self.attn, self.fc = nn.LayerNorm(WIDTH), attention, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        own = self.norm(x)
        return x + self.attn(own, own, own, need_weights=False)[0] + self.fc(own)


def with_shared_attention() -> Small:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    return Small(lambda: SharedAttention(attention))


@pytest.mark.parametrize("used", [False, True], ids=["at once", "after a pass"])
def test_an_attention_that_blocks_share_is_given_back(used: bool):
    base = with_shared_attention()
    model = planned(base, adapt={"blocks.0": TASKS, "blocks.1": TASKS}, rank=2)
    if used:
        model(features())
    for _ in range(2):
        dtme.remove(model)
        torch.testing.assert_close(model(features()), base(features()), rtol=0, atol=0)
        assert list(model.state_dict()) == list(base.state_dict())
    assert "forward" not in vars(model.blocks[0].attn)
    again = dtme.apply(model, dtme.Plan(TASKS, adapt={"blocks.0": TASKS}, rank=2))
    torch.testing.assert_close(again(features()), base(features()))


@pytest.mark.parametrize("kind", ["modulate", "copies", "adapt"])
def test_a_block_that_was_replaced_since(kind: str):
    base = Small()
    model = planned(base, **{kind: {"blocks.1": TASKS}})
    replaced, own = model.blocks[1], Block().double()
    model.blocks[1] = own
    dtme.remove(model)
    assert list(dtme.added_parameters(model)) == []
    assert "dtme" not in dict(replaced.named_children())
    assert "forward" not in vars(replaced)
    twin = copy.deepcopy(base)
    twin.blocks[1] = own
    torch.testing.assert_close(model(features()), twin(features()), rtol=0, atol=0)
    dtme.apply(model, dtme.Plan(TASKS, {"blocks.1": TASKS}))
    torch.testing.assert_close(model(features()), twin(features()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's
@pytest.mark.parametrize("place", ["blocks.1", "whole"])
def test_inserts_leave_a_compiled_model(place: str):
    base: Any = Small()
    model: Any = copy.deepcopy(base)
    if place == "whole":
        model = torch.compile(model, backend="eager")
    else:
        model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    keys = list(model.state_dict())
    dtme.apply(model, dtme.Plan(TASKS, {"blocks.1": TASKS}))
    assert len(model.state_dict()) > len(keys)
    dtme.remove(model)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(features()), base(features()))
