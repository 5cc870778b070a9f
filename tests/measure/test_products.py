"""What tensors are made of, followed by their storages, and the FLOPs of products that torch has no formula for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.utils.flop_counter import FlopCounterMode

from dtme.attach.cost import plain_products
from dtme.measure.products import TOKENS, Products, Tally, Trail, address_of


def followed(run: Any, *tokens: Tensor, weights: tuple[Tensor, ...] = ()) -> tuple[Any, Trail, list[tuple[int, ...]]]:
    """What a function gives, the trail behind it, and of each product, how many of its factors are tokens."""
    trail, products = Trail(), []
    trail.mark(tokens, TOKENS)
    for weight in weights:
        trail.mark(weight, address_of(weight))

    def tell(flops: int, factors: tuple[Any, ...], inputs: Any, output: Any) -> None:
        trail.follow(inputs, output)
        if flops:
            products.append(tuple(TOKENS in trail.origin(factor) for factor in factors))

    with torch.no_grad(), Products(tell):
        output = run()
    return output, trail, products


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x + 1,
        lambda x: x[:, 1:].transpose(0, 1),
        lambda x: torch.cat([torch.ones(2, 1, 4), x], 1),
        lambda x: x.topk(2).indices,
        lambda x: torch.zeros(2, 3, 4).copy_(x),
        lambda x: x.unbind(1)[2],
        lambda x: nn.functional.gelu(x.softmax(-1)).sum(),
        lambda x: torch.ones(9)[x.argmax(-1)],
    ],
)
def test_what_is_made_of_tokens_is_followed(make: Any):
    tokens = torch.randn(2, 3, 4)
    output, trail, _ = followed(lambda: make(tokens), tokens)
    assert TOKENS in trail.origin(output)


def test_what_is_not_made_of_them_is_not():
    tokens = torch.randn(2, 3, 4)
    output, trail, _ = followed(lambda: (tokens + 1, torch.ones(2) * 3, torch.zeros_like(tokens).new_ones(3)), tokens)
    assert [TOKENS in trail.origin(own) for own in output] == [True, False, True]  # the last is shaped by tokens


def test_a_tensor_at_the_address_of_one_that_is_gone_is_another():
    trail = Trail()
    for _ in range(50):
        trail.mark(torch.ones(1000), TOKENS)
        assert not trail.origin(torch.ones(1000))


def test_a_weight_is_known_by_its_storage_and_when_it_is_cast():
    weight = torch.randn(4, 6)
    key = address_of(weight)
    output, trail, _ = followed(lambda: (weight.mT, weight[:2], weight.bfloat16().mT, weight.sum()), weights=(weight,))
    assert [set(trail.origin(own)) for own in output] == [{key}] * 4
    tokens = torch.randn(5, 6)
    output, trail, products = followed(lambda: tokens @ weight.mT, tokens, weights=(weight,))
    assert set(trail.origin(output)) == {TOKENS}
    assert products == [(True, False)]


@pytest.mark.parametrize(
    ("run", "tokens"),
    [
        (lambda x, w, b: nn.functional.linear(x, w, b), (True, False)),
        (lambda x, w, b: nn.functional.linear(x, w), (True, False)),
        (lambda x, w, b: torch.einsum("bnd,ed->bne", x, w), (True, False)),
        (lambda x, w, b: nn.functional.conv1d(x.mT, w.unsqueeze(-1)), (True, False)),
        (lambda x, w, b: torch.baddbmm(x @ x.mT, x, x.mT), (True, True)),
        (lambda x, w, b: w @ w.mT, (False, False)),
    ],
)
def test_factors_of_products(run: Any, tokens: tuple[bool, bool]):
    x, w, b = torch.randn(2, 5, 4), torch.randn(6, 4), torch.randn(6)
    _, _, products = followed(lambda: run(x, w, b), x)
    assert products[-1] == tokens


@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (4, 2)])
@pytest.mark.parametrize("inference", [False, True])
def test_fused_attention_costs_what_its_products_do(heads: tuple[int, int], inference: bool):
    query, key, value = torch.randn(2, heads[0], 5, 8), torch.randn(2, heads[1], 7, 8), torch.randn(2, heads[1], 7, 8)

    def run() -> Tensor:
        return attention(query, key, value, enable_gqa=True)

    counted = []
    with torch.inference_mode(inference), Products(lambda flops, *_: counted.append(flops)):
        run()
    with torch.no_grad(), plain_products(), FlopCounterMode(display=False) as counter:
        run()
    assert sum(counted) == counter.get_total_flops() == 2 * 2 * 2 * 4 * 5 * 7 * 8


def test_a_tally_grows_with_tokens_and_rank():
    """Five tokens of six channels through a layer of four outputs, and a product of all pairs of them."""
    layer = nn.Linear(6, 4)
    block = nn.Sequential(layer)
    tally, weight = Tally(block), frozenset([address_of(layer.weight)])
    tokens = frozenset([TOKENS])
    tally.begin(5)
    tally.add(2 * 5 * 6 * 4, [tokens, weight])
    tally.add(2 * 5 * 5 * 6, [tokens, tokens])
    tally.add(1000, [weight, frozenset()])
    told = tally.tell({}, {})
    assert (told.stream, told.shared) == (240 + 300, 1000)
    assert told.run(1, tokens=2) == 1000 + 2 * 7 * 6 * 4 + 2 * 7 * 7 * 6
    assert told.run(1, rank=3) - told.run(1) == 2 * 5 * 6 * 3 + 2 * 5 * 3 * 4
    assert told.run(1, tokens=2, rank=3) - told.run(1, tokens=2) == 2 * 7 * 3 * (6 + 4)
    tally.begin(2)  # of another length, as in a trunk that reads two inputs
    tally.add(2 * 2 * 6 * 4, [tokens, weight])
    assert tally.tell({}, {}).run(1, tokens=1, rank=1) == 1000 + 2 * (6 + 3) * (6 * 4 + 6 + 4) + 2 * 6 * 6 * 6
    refusing = tally.tell({"expand": "No place."}, {})
    with pytest.raises(ValueError, match=r"No place\."):
        refusing.run(1, tokens=1)
    assert refusing.updates is not None
