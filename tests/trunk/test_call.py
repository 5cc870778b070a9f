"""One call of a block, asked once: its tokens, how they lie, and what else has rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dtme.trunk.call import BlockCall, argument_names, tokens_key
from dtme.trunk.layout import Layout


def test_only_arguments_with_rows_are_changed():
    tokens, table, padding = torch.zeros(2, 3, 4), torch.zeros(3, 3), torch.zeros(2, 3, dtype=torch.bool)
    nested = {"per_sample": torch.ones(2), "shared": torch.ones(7), "text": "kept"}
    names = argument_names(nn.TransformerEncoderLayer(4, 2))
    kwargs = {"src_key_padding_mask": padding, "extra": nested, "is_causal": False}
    call = BlockCall((tokens, table), kwargs, names, 0, Layout(batch=0, token=1))

    def twice(tensor: Tensor, dim: int) -> Tensor:
        return torch.cat([tensor, tensor], dim)

    assert names[:2] == ("src", "src_mask")
    args, kwargs = call.change_rows(twice, 2).arguments
    assert args[0] is tokens
    assert args[1] is table
    assert kwargs["src_key_padding_mask"].shape == (4, 3)
    assert {key: getattr(value, "shape", value) for key, value in kwargs["extra"].items()} == {
        "per_sample": (4,),
        "shared": (7,),
        "text": "kept",
    }
    assert kwargs["is_causal"] is False


def test_tokens_are_the_first_floating_point_argument():
    words, tokens = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, 4)
    assert tokens_key((words, tokens), {}) == 1
    assert tokens_key((words,), {"mask": None, "x": tokens}) == "x"
    with pytest.raises(ValueError, match="no tokens enter it"):
        tokens_key((words,), {})


def test_tokens_are_exchanged_wherever_they_stand():
    x, y, other = torch.zeros(2, 3, 4), torch.ones(2, 3, 4), torch.ones(3)
    call = BlockCall((x, other), {"value": x, "scale": other}, ("query", "bias"), 0, Layout(batch=0, token=1))
    changed = call.with_tokens(y)
    assert changed.tokens is changed.kwargs["value"] is y
    assert changed.args[1] is changed.kwargs["scale"] is other
    assert call.tokens is x


def test_an_argument_is_put_where_it_stands_or_by_name():
    x = torch.zeros(2, 3, 4)
    call = BlockCall((x, None), {}, ("x", "mask", "bias"), 0, Layout(batch=0, token=1))
    assert call.with_argument("mask", 1).arguments == ((x, 1), {})
    assert call.with_argument("bias", 2).arguments == ((x, None), {"bias": 2})
