"""Modulated tokens are made again on the way back: the same gradients, and nothing hidden, kept or left behind."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import dtme
from dtme import low_rank, remaking
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
    """Writes to its input once its norm has kept it: an error of the model's own, with a plan as without."""

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        tokens *= 2.0
        return tokens + self.linear(normed).tanh()


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


class SharesNothing(Block):
    """Multiplies by a sparse matrix of as many numbers as its tokens, which has no place in memory to be told by."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mixing", torch.eye(30, 8).to_sparse())

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = torch.sparse.mm(self.mixing, torch.ones(8, 8, requires_grad=True))  # pyright: ignore[reportArgumentType]
        return super().forward(tokens + mixed.sum())


class ReadsWhatIsFreed(Block):
    """Uses a weight that it made once, and whose making has been differentiated and freed."""

    made: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        if self.made is None:
            self.made = torch.ones(8, requires_grad=True)[torch.arange(8)].exp()
            self.made.sum().backward()
        return super().forward(tokens) * self.made.detach() + 0 * self.made


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


def remade(model: Model, block: int = 1) -> int:
    """How often a block has been given how its tokens are made, in place of the tokens."""
    given: list[Tensor] = []
    first = model.blocks[block].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    made: list[Any] = []
    last = model.blocks[block].register_forward_hook(lambda _, __, output: made.append(output))
    loss(model)
    first.remove()
    last.remove()
    tokens = cast(Tensor, made[0].as_subclass(Tensor))
    kept = list(remaking._kept_between({cast(Any, tokens.grad_fn)}, {given[-1].grad_fn}))
    assert not any(remaking._are_these(own.data, given[-1]) for own in kept)
    return sum(isinstance(own.data, tuple) and isinstance(own.data[0], remaking.Remade) for own in kept)


def test_norms_keep_how_their_tokens_are_made():
    model = modulated()
    assert remade(model, 0) == 1
    assert remade(model, 1) == 1


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
        SharesNothing,
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


@pytest.mark.parametrize(("kind", "readers"), [(ReadByLinear, 2), (ReadByMeanSquare, 2), (ReadByAttention, 0)])
def test_whatever_reads_tokens_keeps_how_they_are_made(kind: type[Block], readers: int):
    assert remade(modulated(kind)) == readers  # attention with samples in front reads a copy, turned around


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


def saves_products(*given: Any, **_: Any) -> CheckpointPolicy:
    """To keep what maps give, and to repeat all else."""
    kept = given[1] is torch.ops.aten.addmm.default
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("kind", [Block, ReadByLinear, ReadByMeanSquare, ReadByAttention])
def test_selective_checkpointing_repeats_what_it_has_not_kept(kind: type[Block], monkeypatch: pytest.MonkeyPatch):
    plain = gradients(modulated(kind))
    contexts = partial(create_selective_checkpoint_contexts, saves_products)
    whole = partial(checkpoint, context_fn=contexts)
    monkeypatch.setattr(sys.modules[__name__], "checkpoint", whole)
    model = modulated(kind, checkpointing=True)
    for _ in range(2):
        for repeated, kept in zip(gradients(model), plain, strict=True):
            torch.testing.assert_close(repeated, kept)


def test_a_second_pass_that_checkpointing_ends_early_holds_nothing():
    model = modulated(checkpointing=True)
    loss(model).backward()
    assert all(block.dtme.passage.recipe is None for block in model.blocks)


def test_a_graph_that_was_freed_is_no_hindrance():
    model = modulated(ReadsWhatIsFreed)
    own = [last(model).norm.weight, last(model).dtme.scale]
    for ours, others in zip(torch.autograd.grad(loss(model), own), torch.autograd.grad(loss(model), own), strict=True):
        assert torch.equal(ours, others)


def test_a_tracer_sees_a_pass_as_it_is_written():
    model = modulated()
    graph = make_fx(lambda given: model(given)["depth"])(images())
    torch.testing.assert_close(graph(images()), model(images())["depth"])


def test_updates_beside_modulators_are_written_in_place_as_they_are_without():
    called: list[bool] = []
    with pytest.MonkeyPatch.context() as patched:
        real = low_rank.low_rank_update
        patched.setattr("dtme.adapting.low_rank_update", lambda *a, **k: called.append(k["fresh"]) or real(*a, **k))
        for modulate in ({}, {"blocks.1": TASKS}):
            model = Model()
            dtme.apply(model, dtme.Plan(TASKS, modulate=modulate, adapt={"blocks.1": TASKS}, rank=2))
            loss(model)
    assert called == [True, True]


def test_kinds_of_operations_are_let_go_with_the_code_that_made_them():
    kinds: list[weakref.ref[type]] = []

    class MadeAnew(Block):
        def forward(self, tokens: Tensor) -> Tensor:
            class Own(torch.autograd.Function):
                @staticmethod
                def forward(ctx: Any, x: Tensor) -> Tensor:
                    ctx.save_for_backward(x)
                    return 2 * x

                @staticmethod
                def backward(ctx: Any, *gradients: Tensor) -> Tensor:
                    return 2 * gradients[0]

            kinds.append(weakref.ref(Own))
            return super().forward(Own.apply(tokens))

    model = modulated(MadeAnew)
    assert remade(model) == 1
    loss(model).backward()
    gc.collect()
    assert [kind() for kind in kinds] == [None, None]


@pytest.mark.parametrize("kind", [WritesToKept, WritesLater])
def test_a_block_that_writes_to_what_it_has_kept_is_refused_as_ever(kind: type[Block]):
    for model in (Model(kind), modulated(kind)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(model)


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
