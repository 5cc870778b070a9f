"""What blocks are given alike is folded and extended once in a pass, and nothing of it outlives the pass."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtme
from dtme import crossing, expanding
from dtme.made_once import MOST, MadeOnce

TASKS = ("a", "b")
BLOCKS = 5


class Layers(nn.Module):
    """Five layers of torch, all given the same mask, or each its own."""

    def __init__(self, *, own_masks: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(BLOCKS)
        )
        self.heads = nn.ModuleDict({task: nn.Identity() for task in TASKS})
        self.own_masks = own_masks
        self.fails = False

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=mask.clone() if self.own_masks else mask)
        if self.fails:
            raise RuntimeError("behind the blocks")
        return {task: head(tokens) for task, head in self.heads.items()}


def applied(tasks: tuple[str, ...] = TASKS, **changes: Any) -> Layers:
    torch.manual_seed(0)
    model = Layers(**changes)
    every = dict.fromkeys((f"layers.{place}" for place in range(BLOCKS)), tasks)
    dtme.apply(model, dtme.Plan(TASKS, expand=every))
    return model


def batch() -> tuple[Tensor, Tensor]:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 2:] = True
    return torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1)), mask


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a mask, two-dimensional here, has been folded and extended."""
    found: Counter[str] = Counter()
    fold, extend = crossing.fold, expanding.extend_mask

    def counting_fold(tokens: Tensor, *args: Any) -> Tensor:
        found["folded"] += tokens.ndim == 2
        return fold(tokens, *args)

    def counting_extend(*args: Any, **kwargs: Any) -> Tensor:
        found["extended"] += 1
        return extend(*args, **kwargs)

    monkeypatch.setattr(crossing, "fold", counting_fold)
    monkeypatch.setattr(expanding, "extend_mask", counting_extend)
    return found


@pytest.mark.parametrize("tasks", [TASKS, TASKS[:1]])
def test_one_mask_through_five_blocks_is_folded_and_extended_once_a_pass(tasks: tuple[str, ...], counted: Counter[str]):
    model = applied(tasks)
    for passes in (1, 2):
        model(*batch())
        assert counted == {"folded": passes, "extended": passes}


def test_compiled_it_is_one_graph_and_the_same():
    torch._dynamo.reset()
    model = applied()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for before, after in zip(model(*batch()).values(), compiled(*batch()).values(), strict=True):
            torch.testing.assert_close(after, before)
    torch._dynamo.reset()


def test_the_outputs_are_those_of_masks_made_in_every_block(counted: Counter[str]):
    shared, apart = applied()(*batch()), applied(own_masks=True)(*batch())
    assert counted["extended"] == 1 + BLOCKS
    for task in TASKS:
        torch.testing.assert_close(shared[task], apart[task], rtol=0, atol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_outlives_the_pass(fails: bool, monkeypatch: pytest.MonkeyPatch):
    model = applied()
    model.fails = fails
    made: list[weakref.ref[Tensor]] = []
    extend = expanding.extend_mask

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        mask = extend(*args, **kwargs)
        made.append(weakref.ref(mask))
        return mask

    monkeypatch.setattr(expanding, "extend_mask", noted)
    try:
        with torch.no_grad():
            model(*batch())
    except RuntimeError:
        assert fails
    gc.collect()
    assert [mask() for mask in made] == [None]


def test_a_mask_that_is_written_to_between_blocks_is_extended_anew():
    kept, mask = MadeOnce(), torch.zeros(2)
    kept.begin()
    first = kept.once(mask, "more", lambda: mask + 1)
    assert kept.once(mask, "more", lambda: mask + 1) is first
    mask += 1
    second = kept.once(mask, "more", lambda: mask + 1)
    assert second.tolist() == [2.0, 2.0]
    second += 1  # by a block
    assert kept.once(mask, "more", lambda: mask + 1).tolist() == [2.0, 2.0]
    assert kept.once(mask, "other", lambda: mask + 2).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("given", [nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)])
def test_of_what_needs_a_gradient_nothing_is_kept(given: Tensor):
    kept = MadeOnce(running=True)
    assert kept.once(given, "", lambda: given + 1) is not kept.once(given, "", lambda: given + 1)


def test_nor_outside_a_pass_nor_in_inference_mode():
    given, kept = torch.ones(2), MadeOnce()
    assert kept.once(given, "", lambda: given + 1) is not kept.once(given, "", lambda: given + 1)
    kept.begin()
    with torch.inference_mode():
        assert kept.once(given, "", lambda: given + 1) is not kept.once(given, "", lambda: given + 1)


def test_what_only_one_block_is_given_does_not_pile_up():
    kept = MadeOnce(running=True)
    for _ in range(3 * MOST):
        own = torch.ones(2)
        kept.once(own, "", lambda own=own: own + 1)
    assert len(kept._made) == MOST
