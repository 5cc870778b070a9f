"""Which arguments of a block follow the tokens into their streams."""

from __future__ import annotations

import pytest
import torch

from dtme.trunk.batched_arguments import has_rows


@pytest.mark.parametrize(
    ("name", "shape", "samples", "length", "follows"),
    [
        ("src_mask", (5, 5), 2, 5, False),
        ("src_mask", (5, 5), 5, 5, False),
        ("src_key_padding_mask", (5, 5), 5, 5, True),
        ("attention_mask", (5, 5), 5, 5, True),
        ("src_key_padding_mask", (2, 5), 2, 5, True),
        ("src_mask", (2, 5, 5), 2, 5, True),
        ("src_mask", (6, 5, 5), 2, 5, True),  # a row per head
        ("src_mask", (1, 5, 5), 2, 5, False),  # broadcast
        ("src_mask", (3, 5, 5), 1, 5, True),
        ("shared_rel_pos_bias", (6, 5, 5), 2, 5, False),
        ("mask", (2, 1, 1, 5), 2, 5, True),
        ("mask", (1, 1, 5, 5), 2, 5, False),
        ("rope", (5, 8), 5, 5, False),
        ("rope", (5, 8), 2, 5, False),
        ("condition", (5, 8), 5, 5, True),
        ("condition", (2, 8), 2, 5, True),
        ("lengths", (2,), 2, 5, True),
        ("scale", (), 2, 5, False),
        ("condition", (2, 8), 2, None, True),
    ],
)
def test_rows_are_told_by_rule(name: str, shape: tuple[int, ...], samples: int, length: int | None, follows: bool):
    assert has_rows(name, torch.zeros(shape), samples, length) is follows
