"""Modulated tokens are made again on the way back: the same gradients, and nothing hidden, kept or left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import dtme
from dtme.eager import is_transformed

TASKS = ("depth", "semseg")
autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]


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


class WritesToKept(Block):
    """Writes to what its linear layer has kept: an error of the model's own, with a plan as without."""

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        added = self.linear(normed)
        normed *= 2.0
        return tokens + added


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


def loss(model: Model) -> Tensor:
    return torch.stack([out.square().mean() for out in model(images()).values()]).sum()


def gradients(model: Model, **how: Any) -> list[Tensor]:
    return list(torch.autograd.grad(loss(model), list(model.parameters()), **how))


def kept_as_ever(model: Model) -> list[Tensor]:
    """The gradients where hooks of someone else keep the library's away."""
    with saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor):
        value = loss(model)
    return list(torch.autograd.grad(value, list(model.parameters())))


def is_at_rest() -> bool:
    return autograd._top_saved_tensors_default_hooks(False) is None


@pytest.mark.parametrize("kind", [Block, WritesFirst])
def test_gradients_are_the_same_to_the_bit(kind: type[Block]):
    model = modulated(kind)
    for ours, others in zip(gradients(model), kept_as_ever(model), strict=True):
        assert torch.equal(ours, others)
    assert is_at_rest()


@pytest.mark.parametrize("expanded", [TASKS, TASKS[:1]])
def test_gradients_are_the_same_with_task_tokens_behind(expanded: tuple[str, ...]):
    model = modulated(expand={"blocks.1": expanded})
    for ours, others in zip(gradients(model), kept_as_ever(model), strict=True):
        assert torch.equal(ours, others)
    assert is_at_rest()


def test_a_scale_of_zero_has_its_gradient():
    model = modulated()
    with torch.no_grad():
        last(model).dtme.scale.zero_()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), kept_as_ever(model), strict=True))
    assert last(model).dtme.scale.grad is None


def test_second_derivatives():
    model = modulated().double()

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


def test_checkpointing_keeps_its_own_hooks():
    for repeated, kept in zip(gradients(modulated(checkpointing=True)), gradients(modulated()), strict=True):
        torch.testing.assert_close(repeated, kept)
    assert is_at_rest()


def test_a_block_may_write_to_tokens_that_are_made_again():
    pairs = zip(gradients(modulated(WritesLater)), gradients(modulated(Doubles)), strict=True)
    assert all(torch.equal(written, apart) for written, apart in pairs)


def test_a_block_that_writes_to_what_it_has_kept_is_refused_as_ever():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(modulated(WritesToKept))


def test_a_scale_that_is_stepped_before_the_backward_pass_is_refused():
    model = modulated()
    value = loss(model)
    with torch.no_grad():
        last(model).dtme.scale += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_nothing_stays_where_a_block_fails():
    with pytest.raises(KeyError, match="its own"):
        loss(modulated(Fails))
    assert is_at_rest()


def test_what_an_interrupt_left_is_cleared_by_the_next_pass():
    model = modulated()
    linear = last(model).linear

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = linear.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loss(model)
    handle.remove()
    loss(model).backward()
    loss(model).backward()
    assert is_at_rest()


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
