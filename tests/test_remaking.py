"""Modulated tokens are made again on the way back: the same gradients, and nothing hidden, kept or left behind."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import dtme
from dtme import remaking
from dtme.eager import is_transformed

TASKS = ("depth", "semseg")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.linear(self.norm(tokens)).tanh()


class WritesFirst(Block):
    """Writes to its input before anything else: allowed, as nothing has kept it yet."""

    def forward(self, tokens: Tensor) -> Tensor:
        tokens += 1.0
        return super().forward(tokens)


class WritesLater(Block):
    """Writes to its input once its norm has read it, which would be an error if the norm had kept it."""

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        tokens *= 2.0
        return tokens + self.linear(normed).tanh()


class Doubles(Block):
    """The same without writing."""

    def forward(self, tokens: Tensor) -> Tensor:
        return 2.0 * tokens + self.linear(self.norm(tokens)).tanh()


class WritesBehindTheCounter(Block):
    """Writes to its input in a way that autograd is not told of."""

    def forward(self, tokens: Tensor) -> Tensor:
        tokens.data += 0.3
        return super().forward(tokens)


class Transforms(Block):
    """Differentiates inside its own forward."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + torch.func.grad(lambda x: (x**3).sum())(tokens)


class WritesToKept(Block):
    """Writes to what its linear layer has kept: an error of the model's own, with a plan as without."""

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        added = self.linear(normed)
        normed *= 2.0
        return tokens + added


class ReadByLinear(Block):
    """Norm behind: two maps read the tokens, and each keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens + self.linear(tokens).tanh() * self.gate(tokens))


class MeanSquare(nn.Module):
    """A norm of several operations."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight * (tokens * torch.rsqrt(tokens.pow(2).mean(-1, keepdim=True) + 1e-6))


class ReadByMeanSquare(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = MeanSquare()


class ReadByAttention(Block):
    """Attention that makes queries, keys and values by one map, samples behind positions."""

    batch_first = True

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens + self.linear(self.attend(tokens, tokens, tokens)[0]))


class Fails(Block):
    def forward(self, tokens: Tensor) -> Tensor:
        raise KeyError("its own")


class Model(nn.Module):
    def __init__(self, kind: type[Block] = Block, *, checkpointing: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([Block(), kind()])
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})
        self.checkpointing = checkpointing

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False) if self.checkpointing else block(tokens)
        return {task: head(tokens) for task, head in self.heads.items()}


def modulated(
    kind: type[Block] = Block, *, checkpointing: bool = False, expand: dict[str, tuple[str, ...]] | None = None
) -> Model:
    model = Model(kind, checkpointing=checkpointing)
    dtme.apply(model, dtme.Plan(TASKS, modulate={"blocks.0": TASKS, "blocks.1": TASKS}, expand=expand or {}))
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter += torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter)
    return model


def last(model: Model) -> Any:
    """Its last block."""
    return model.blocks[1]


def images() -> Tensor:
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def loss(model: Model, given: Tensor | None = None) -> Tensor:
    outputs = model(images() if given is None else given)
    return torch.stack([out.square().mean() for out in outputs.values()]).sum()


def gradients(model: Model, **how: Any) -> list[Tensor]:
    return list(torch.autograd.grad(loss(model), list(model.parameters()), **how))


def kept_as_ever(model: Model) -> list[Tensor]:
    """The gradients where norms keep their tokens."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(remaking, "_is_as_made", lambda *_: False)
        return gradients(model)


def remade(model: Model, block: int = 1) -> bool:
    """Whether the norm of a block keeps how its tokens are made, in place of the tokens."""
    kept: list[Any] = []
    handle = model.blocks[block].norm.register_forward_hook(lambda _, __, output: kept.append(output.grad_fn))
    loss(model)
    handle.remove()
    return isinstance(kept[0]._raw_saved_input.data, remaking.Remade)


def test_norms_keep_how_their_tokens_are_made():
    model = modulated()
    assert remade(model, 0)
    assert remade(model, 1)


@pytest.mark.parametrize(
    "kind",
    [
        Block,
        WritesFirst,
        WritesBehindTheCounter,
        Transforms,
        ReadByLinear,
        ReadByMeanSquare,
        ReadByAttention,
    ],
)
def test_gradients_are_the_same_to_the_bit(kind: type[Block]):
    model = modulated(kind)
    for ours, others in zip(gradients(model), kept_as_ever(model), strict=True):
        assert torch.equal(ours, others)


@pytest.mark.parametrize("expanded", [TASKS, TASKS[:1]])
def test_gradients_are_the_same_with_task_tokens_behind(expanded: tuple[str, ...]):
    model = modulated(expand={"blocks.1": expanded})
    for ours, others in zip(gradients(model), kept_as_ever(model), strict=True):
        assert torch.equal(ours, others)


def test_a_scale_of_zero_has_its_gradient():
    model = modulated()
    with torch.no_grad():
        last(model).dtme.scale.zero_()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), kept_as_ever(model), strict=True))
    assert last(model).dtme.scale.grad is None


@pytest.mark.parametrize("kind", [ReadByLinear, ReadByMeanSquare])
def test_whatever_reads_tokens_keeps_how_they_are_made(kind: type[Block]):
    model = modulated(kind)
    kept: list[Any] = []
    tokens: list[Tensor] = []
    first = last(model).linear if kind is ReadByLinear else last(model).norm

    def note(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        tokens.append(given[0])
        kept.append(output.grad_fn)

    first.register_forward_hook(note)
    loss(model)
    saved = list(remaking._saved_between(kept[0], tokens[0].grad_fn))
    assert sum(isinstance(own.data, remaking.Remade) for own in saved) == (1 if kind is ReadByLinear else 2)
    assert not any(isinstance(own.data, Tensor) and own.data.data_ptr() == tokens[0].data_ptr() for own in saved)


@pytest.mark.parametrize("kind", [Block, ReadByLinear, ReadByMeanSquare])
def test_second_derivatives(kind: type[Block]):
    model = modulated(kind).double()

    def penalty() -> Tensor:
        value = torch.stack([out.square().mean() for out in model(images().double()).values()]).sum()
        found = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
        return torch.stack([gradient.square().sum() for gradient in found]).sum()

    scale = last(model).dtme.scale
    exact = torch.autograd.grad(penalty(), scale)[0]
    step = torch.zeros_like(scale)
    step[0, 3] = 1e-6
    with torch.no_grad():
        scale += step
    above = penalty().item()
    with torch.no_grad():
        scale -= 2 * step
    assert exact[0, 3].item() == pytest.approx((above - penalty().item()) / 2e-6, rel=1e-5)


def test_several_gradients_at_once():
    model = modulated()
    outputs = torch.stack([out.square().mean() for out in model(images()).values()])
    at_once = torch.autograd.grad(
        outputs, list(model.parameters()), torch.eye(2), is_grads_batched=True, retain_graph=True
    )
    for place in range(2):
        alone = torch.autograd.grad(outputs[place], list(model.parameters()), retain_graph=True, allow_unused=True)
        for together, own in zip(at_once, alone, strict=True):
            torch.testing.assert_close(together[place], torch.zeros_like(together[place]) if own is None else own)


def test_checkpointing_keeps_its_own():
    for repeated, kept in zip(gradients(modulated(checkpointing=True)), gradients(modulated()), strict=True):
        torch.testing.assert_close(repeated, kept)


def test_a_block_may_write_to_tokens_that_are_made_again():
    pairs = zip(gradients(modulated(WritesLater)), gradients(modulated(Doubles)), strict=True)
    assert all(torch.equal(written, apart) for written, apart in pairs)


def test_a_block_that_writes_to_what_it_has_kept_is_refused_as_ever():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(modulated(WritesToKept))


def test_a_shift_may_be_stepped_between_two_backward_passes():
    model = modulated()
    value = loss(model)
    own = [last(model).norm.weight]
    first = torch.autograd.grad(value, own, retain_graph=True)
    with torch.no_grad():
        last(model).dtme.shift += 1.0
    assert torch.equal(torch.autograd.grad(value, own)[0], first[0])


def test_tokens_that_are_written_to_after_the_modulator_read_them_are_refused():
    class Model2(Model):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            given = self.embed(images)
            tokens = self.blocks[1](self.blocks[0](given))
            given *= 2.0
            return {task: head(tokens) for task, head in self.heads.items()}

    model = Model2()
    dtme.apply(model, dtme.Plan(TASKS, modulate={"blocks.0": TASKS}))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(model)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_model_whose_pass_was_cut_short_can_be_copied_and_goes_on(error: type[BaseException]):
    model = modulated()

    def interrupt(*_: Any) -> None:
        raise error

    handle = last(model).linear.register_forward_pre_hook(interrupt)
    with pytest.raises(error):
        loss(model)
    handle.remove()
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))  # noqa: S301 - its own
    for twin in twins:
        assert all(torch.equal(a, b) for a, b in zip(gradients(twin), gradients(model), strict=True))


def test_tokens_without_values_are_kept_as_ever():
    value = loss(modulated().eval().to("meta"), images().to("meta"))
    value.backward()
    assert value.is_meta


def test_tokens_of_a_wrapper_are_kept_as_ever():
    model = modulated().eval()
    weight = model.embed.weight.detach()
    model.embed.weight = nn.Parameter(TwoTensor(weight, weight.clone()))
    with dtme.tasks(model, "depth"):
        model(images())["depth"].square().mean().backward()
    assert last(model).dtme.scale.grad is not None


def test_nothing_is_held_between_passes():
    model = modulated()
    loss(model)
    assert all(block.dtme.passage.recipe is None for block in model.blocks)


def test_a_frozen_modulator_keeps_its_tokens_as_ever():
    model = modulated()
    for _, parameter in dtme.added_parameters(model):
        parameter.requires_grad_(False)
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss(model), own))


def test_a_pass_that_runs_as_written_is_not_transformed():
    assert not is_transformed()
    seen: list[bool] = []
    torch.func.vmap(lambda x: seen.append(is_transformed()) or x)(torch.ones(2))
    assert seen == [True]
