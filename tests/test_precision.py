"""The products behind a rate of conflict are exact in their last bits, whatever the user allows for the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dtme._precision import full_precision
from dtme.measure.conflict import count_conflicts
from dtme.measure.token_space import TokenSpace, second_moment, token_space

BACKENDS = (torch.backends.cuda, torch.backends.mkldnn)
pytestmark = pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="before torch 2.9 there is one setting for all"
)


def precisions() -> list[str]:
    return [backend.matmul.fp32_precision for backend in BACKENDS]


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    kept = precisions()
    yield
    for backend, precision in zip(BACKENDS, kept, strict=True):
        backend.matmul.fp32_precision = precision


def by_the_old_name() -> None:
    torch.set_float32_matmul_precision("medium")


def by_the_new_name() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize("allow", [by_the_old_name, by_the_new_name, lambda: None])
def test_less_is_allowed_again_afterwards(allow: Callable[[], None]):
    allow()
    before = precisions()
    with full_precision(torch.device("cpu")):
        assert precisions() == ["ieee", "ieee"]
    assert precisions() == before
    with pytest.raises(ZeroDivisionError), full_precision(torch.device("cpu")):
        raise ZeroDivisionError
    assert precisions() == before
    if allow is by_the_old_name:
        assert torch.get_float32_matmul_precision() == "medium"


class Products(TorchDispatchMode):
    """In what precision matrices are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
            self.seen.append((*precisions(), str(args[0].dtype)))
        return func(*args, **(kwargs or {}))


def space() -> TokenSpace:
    return token_space(torch.cov(torch.randn(6, 40, dtype=torch.float64)) + 3 * torch.ones(6, 6).double(), 10.0)


def test_no_product_of_the_analysis_is_computed_in_less():
    by_the_old_name()
    gradients, tokens, own = torch.randn(3, 5, 2, 6), torch.randn(3, 5, 6), space()
    # Nothing of these lies in the null space, so that their products there are computed directly.
    gradients[0, 0] = torch.randn(2, own.rank) @ own.range_basis.T.float()
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        count_conflicts(gradients, own)
        second_moment(tokens)
    assert len(products.seen) == 6
    assert set(products.seen) == {("ieee", "ieee", "torch.float32")}


def test_rates_under_autocast_are_those_without():
    gradients, own = torch.randn(40, 5, 3, 6), space()
    plain = count_conflicts(gradients, own)
    with torch.autocast("cpu", torch.bfloat16):
        cast = count_conflicts(gradients, own)
    assert torch.equal(plain.in_range, cast.in_range)
    assert torch.equal(plain.in_null, cast.in_null)
