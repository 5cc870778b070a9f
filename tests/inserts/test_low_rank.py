"""The update of a linear layer and its own backward pass, against the formula that autograd differentiates by itself."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from dtme.inserts.low_rank import low_rank_update

LANES, ROWS, IN, OUT, RANK = 3, 4, 5, 6, 2


def literal(linear: nn.Linear, inputs: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Lane by lane."""
    lanes = zip(inputs.chunk(LANES), down, up, strict=True)
    return torch.cat([linear(x) + x @ a.mT @ b.mT for x, a, b in lanes])


def ours(linear: nn.Linear, inputs: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return low_rank_update(inputs, linear(inputs), down, up, 0, fresh=True, linear=linear)


def given(*, bias: bool = True, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (ROWS,)) -> tuple:
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT, bias=bias, dtype=dtype)
    inputs = torch.randn(LANES * 2, *shape, IN, dtype=dtype, requires_grad=True)
    down = torch.randn(LANES, RANK, IN, dtype=dtype, requires_grad=True)
    up = torch.randn(LANES, OUT, RANK, dtype=dtype, requires_grad=True)
    return linear, inputs, down, up


def gradients(run, linear: nn.Linear, inputs: Tensor, down: Tensor, up: Tensor, **options) -> tuple:
    wanted = [each for each in (inputs, down, up, *linear.parameters()) if each.requires_grad]
    outputs = run(linear, inputs, down, up)
    weights = torch.arange(outputs.numel(), dtype=outputs.dtype).view_as(outputs).sin()
    return outputs, torch.autograd.grad((outputs * weights).square().sum(), wanted, **options)


def assert_alike(arguments: tuple, run=ours, **tolerance: float) -> None:
    outputs, found = gradients(run, *arguments)
    wanted_outputs, wanted = gradients(literal, *arguments)
    torch.testing.assert_close(outputs, wanted_outputs, **tolerance)
    torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (ROWS,), (2, 3)])
def test_outputs_and_every_gradient_are_those_of_the_formula(bias: bool, shape: tuple[int, ...]):
    assert_alike(given(bias=bias, shape=shape))


@pytest.mark.parametrize("frozen", ["linear", "inputs", "down", "up"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen: str):
    linear, inputs, down, up = given()
    parts = {"linear": linear, "inputs": inputs, "down": down, "up": up}
    parts[frozen].requires_grad_(False)
    assert_alike((linear, inputs, down, up))


class Products(TorchDispatchMode):
    """Counts the products and sums that are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("mm", "bmm", "baddbmm", "addmm", "sum")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("trained", "products"),
    [
        (("inputs", "linear", "down", "up"), 7),  # B^T g; its two for the inputs; one each for W, the bias, A and B
        (("inputs",), 3),
        (("linear",), 2),
        (("down",), 2),
        (("up",), 1),
    ],
)
def test_no_product_is_taken_on_the_way_back_that_nothing_asks_for(trained: tuple[str, ...], products: int):
    linear, inputs, down, up = given()
    for name, part in {"inputs": inputs, "linear": linear, "down": down, "up": up}.items():
        part.requires_grad_(name in trained)
    outputs = ours(linear, inputs, down, up)
    with Products() as taken:
        outputs.backward(torch.ones_like(outputs))
    assert taken.count == products


def test_the_outputs_are_written_over_and_no_other_memory_is_taken_for_them():
    linear, inputs, down, up = given()
    outputs = linear(inputs)
    place = outputs.data_ptr()
    assert low_rank_update(inputs, outputs, down, up, 0, fresh=True, linear=linear).data_ptr() == place
    outputs = linear(inputs)
    kept = outputs.detach().clone()
    low_rank_update(inputs, outputs, down, up, 0, linear=linear)
    torch.testing.assert_close(outputs, kept, rtol=0, atol=0)  # not fresh: someone else may hold it


def test_nothing_is_kept_for_the_way_back_but_inputs_parameters_and_inner_products():
    linear, inputs, down, up = given()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours(linear, inputs, down, up)
    own = {each.data_ptr() for each in (inputs, linear.weight, linear.bias, down, up)}
    others = {tensor.shape for tensor in kept if tensor.data_ptr() not in own}
    assert others == {(LANES, RANK, OUT), (LANES, 2 * ROWS, RANK)}


def test_it_is_differentiated_twice():
    linear, *tensors = given()
    arguments = (*tensors, linear.weight, linear.bias)

    def run(inputs: Tensor, down: Tensor, up: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        linear.__dict__["_parameters"] = {"weight": weight, "bias": bias}
        return ours(linear, inputs, down, up)

    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


def test_several_gradients_at_once_are_those_one_at_a_time():
    linear, inputs, down, up = given()
    outputs = ours(linear, inputs, down, up)
    each = torch.randn(4, *outputs.shape, dtype=outputs.dtype)
    alone = [torch.autograd.grad(outputs, (inputs, down, up), one, retain_graph=True) for one in each]
    together = torch.autograd.grad(outputs, (inputs, down, up), each, is_grads_batched=True)
    for place, found in enumerate(together):
        torch.testing.assert_close(found, torch.stack([own[place] for own in alone]))


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:FutureWarning"
)  # torch's own, differentiating forwards
def test_transforms_of_torch_func_and_derivatives_forwards_go_through():
    linear, inputs, down, up = given()

    def loss(own: Tensor) -> Tensor:
        return ours(linear, own, down, up).square().sum()

    wanted = torch.autograd.grad(literal(linear, inputs, down, up).square().sum(), inputs)[0]
    torch.testing.assert_close(torch.func.grad(loss)(inputs.detach()), wanted)
    tangent = torch.randn_like(inputs)
    with forward_ad.dual_level():
        moved = forward_ad.unpack_dual(loss(forward_ad.make_dual(inputs.detach(), tangent))).tangent
    torch.testing.assert_close(moved, (wanted * tangent).sum())


def test_it_is_computed_again_under_checkpointing():
    def run(linear: nn.Linear, *tensors: Tensor) -> Tensor:
        return checkpoint(lambda *own: ours(linear, *own), *tensors, use_reentrant=False)

    assert_alike(given(), run)


def test_a_hook_on_the_layers_gradient_sees_that_of_both():
    linear, inputs, down, up = given()
    seen: list[Tensor] = []
    linear.register_full_backward_hook(lambda module, of_inputs, of_outputs: seen.append(of_inputs[0].clone()))

    def run(linear: nn.Linear, inputs: Tensor, down: Tensor, up: Tensor) -> Tensor:
        def hook(module: nn.Linear, args: tuple[Tensor], outputs: Tensor) -> Tensor:
            return low_rank_update(args[0], outputs, down, up, 0, fresh=True, linear=module)

        with linear.register_forward_hook(hook):
            return linear(inputs)

    _, found = gradients(run, linear, inputs, down, up)
    assert torch.equal(seen[0], found[0])
    linear._backward_hooks.clear()
    _, wanted = gradients(literal, linear, inputs, down, up)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_and_autocast(dtype: torch.dtype):
    assert_alike(given(dtype=dtype), rtol=0.05, atol=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_alike(given(dtype=torch.float32), rtol=0.05, atol=0.5)


def test_a_layer_of_another_type_than_its_inputs_keeps_its_own_way():
    """Under autocast inputs and outputs may have one type and the weight another."""
    linear, inputs, down, up = given(dtype=torch.float32)
    half = inputs.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(linear, half, down, up)
        wanted = literal(linear, half, down, up)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.2)
    found.float().sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.dtype == torch.float32


def test_what_follows_may_work_in_place():
    def run(linear: nn.Linear, inputs: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return nn.functional.relu_(ours(linear, inputs, down, up))

    arguments = given()
    _, found = gradients(run, *arguments)
    _, wanted = gradients(lambda *own: nn.functional.relu(literal(*own)), *arguments)
    torch.testing.assert_close(found, wanted)


def test_the_way_back_may_run_under_autocast():
    linear, inputs, down, up = given(dtype=torch.float32)
    outputs = ours(linear, inputs, down, up).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(outputs, (inputs, down, up, linear.weight))
    wanted = torch.autograd.grad(literal(linear, inputs, down, up).square().sum(), (inputs, down, up, linear.weight))
    torch.testing.assert_close(found, wanted)


def test_checkpointing_may_keep_the_products():
    keep = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]

    def run(linear: nn.Linear, *tensors: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, keep)
        return checkpoint(lambda *own: ours(linear, *own), *tensors, use_reentrant=False, context_fn=contexts)

    assert_alike(given(), run)
