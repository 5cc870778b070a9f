"""The analysis touches nothing: not the parameters, gradients, modes, buffers or hooks, also when it fails midway."""

from __future__ import annotations

import dataclasses
import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import dtme
from dtme.measure import stopping

TASKS = ("a", "b", "c")


class Counted(torch.autograd.Function):
    """A linear map that refuses to compute the gradient of its weight, and counts its backward passes."""

    backwards: ClassVar[Counter[str]] = Counter()

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.name = name
        return tokens @ weight.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        assert not ctx.needs_input_grad[1], "the gradient of a parameter was asked for"
        Counted.backwards[ctx.name] += 1
        return gradients[0] @ ctx.saved_tensors[0], None, None


class Block(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.name, self.norm, self.attention = name, nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens.flatten(0, 1)).view(tokens.shape)
        mixed = Counted.apply(normed, self.attention.weight, self.name)
        assert isinstance(mixed, Tensor)
        return tokens + self.dropout(mixed).tanh().roll(1, 1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block("first"), Block("second")])
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            tokens = block(tokens)
        return {task: head(tokens) for task, head in self.heads.items()}


def task_losses(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    return {task: (output - place).square().mean() for place, (task, output) in enumerate(model(batch).items())}


def batches(count: int = 3) -> list[Tensor]:
    return [torch.randn(4, 5, 8) for _ in range(count)]


def prepared() -> Model:
    """A model in the middle of training: some gradients, a frozen part, mixed modes, a hook of the user's."""
    model = Model().train()
    model.heads["b"].requires_grad_(False)
    model.blocks[1].eval()
    for parameter in model.blocks[0].parameters():
        parameter.grad = torch.randn_like(parameter)
    model.blocks[0].register_forward_hook(lambda module, args, output: None)
    return model


def hooks(module: nn.Module) -> dict[str, list[int]]:
    return {key: list(value) for key, value in vars(module).items() if key.endswith(("_hooks", "_hooks_with_kwargs"))}


def state(model: nn.Module) -> dict[str, Any]:
    """Everything there is to see of a model, copied."""
    seen: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        seen[name] = (id(parameter), parameter.detach().clone(), parameter.requires_grad)
        seen[f"{name}.grad"] = None if gradient is None else (id(gradient), gradient.clone())
        assert parameter.is_leaf
    for name, buffer in model.named_buffers():
        seen[name] = (id(buffer), buffer.clone())
    for name, module in model.named_modules():
        seen[f"{name} mode"] = module.training
        seen[f"{name} attributes"] = sorted(vars(module))
        seen[f"{name} hooks"] = hooks(module)
    return seen


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def assert_untouched(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    assert [name for name in before if not same(before[name], after[name])] == []


@pytest.mark.parametrize("grad_mode", [True, False])
def test_after_an_analysis(grad_mode: bool):
    model = prepared()
    before = state(model)
    with torch.set_grad_enabled(grad_mode):
        report = dtme.analyze(model, task_losses, batches())
        assert torch.is_grad_enabled() is grad_mode
    assert report.samples == 12
    assert_untouched(before, state(model))


class Interrupted:
    """Batches that end in an exception, in the first or the second round."""

    def __init__(self, error: BaseException, round_: int):
        self.error, self.left = error, round_

    def __iter__(self) -> Iterator[Tensor]:
        self.left -= 1
        yield from batches(1)
        if self.left == 0:
            raise self.error
        yield from batches(1)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken loader")])
@pytest.mark.parametrize("round_", [1, 2])
def test_after_batches_that_break_off(error: BaseException, round_: int):
    model = prepared()
    before = state(model)
    with pytest.raises(type(error)):
        dtme.analyze(model, task_losses, Interrupted(error, round_))
    assert_untouched(before, state(model))


@pytest.mark.parametrize("at", [0, 2, 4, 5])
def test_after_a_forward_pass_that_fails_inside_a_block(at: int):
    model = prepared()
    calls = []

    def fail(module: nn.Module, args: Any) -> None:
        calls.append(1)
        if len(calls) > at:
            raise KeyboardInterrupt

    handle = model.blocks[1].dropout.register_forward_pre_hook(fail)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        dtme.analyze(model, task_losses, batches())
    assert_untouched(before, state(model))
    handle.remove()
    dtme.analyze(model, task_losses, batches())


def test_after_a_backward_pass_that_fails():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: Tensor) -> Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            raise RuntimeError("no memory")

    def losses(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        found = task_losses(model, batch)
        return {**found, "c": Fails.apply(found["c"])}  # type: ignore[dict-item]

    model = prepared()
    before = state(model)
    with pytest.raises(RuntimeError, match="no memory"):
        dtme.analyze(model, losses, batches())
    assert_untouched(before, state(model))


def test_a_model_with_a_plan_is_analysed_and_left_with_it():
    model = prepared()
    dtme.apply(model, dtme.Plan(TASKS, {"blocks.0": TASKS}, {"blocks.1": ("a", "c")}))
    before = state(model)
    report = dtme.analyze(model, task_losses, batches())
    assert report.blocks == ("blocks.0", "blocks.1")
    assert_untouched(before, state(model))


def test_passes_per_batch_and_no_gradient_of_a_parameter():
    """Per batch: a forward pass for the token space, then a forward pass and one backward pass per task.

    And one forward pass more, to count FLOPs.
    """
    model = prepared()
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _: pytest.fail("a gradient was accumulated"))
    Counted.backwards.clear()
    dtme.analyze(model, task_losses, batches(4))
    assert forwards == [False] * 4 + [True] * 4 + [False]
    assert Counted.backwards == {"second": 4 * len(TASKS), "first": 4 * len(TASKS)}


@pytest.fixture
def collector() -> Iterator[None]:
    """What exists before the test is no concern of the collector's."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def live() -> int:
    """Numbers held by all tensors made since and alive."""
    gc.collect()
    return sum(found.numel() for found in gc.get_objects() if issubclass(type(found), Tensor))


def test_what_is_alive_does_not_grow_with_the_number_of_batches(collector: None, monkeypatch: pytest.MonkeyPatch):
    """But for the counts of each sample, of which no more than so many are kept one by one."""
    monkeypatch.setattr(stopping, "ROWS", 16)
    model = prepared()
    alive: list[int] = []

    class Drawn:
        """Batches made when they are asked for, so that nothing but the analysis keeps them."""

        def __iter__(self) -> Iterator[Tensor]:
            for seed in range(24):
                alive.append(live())
                yield torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(seed))

    dtme.analyze(model, task_losses, Drawn(), max_samples=None)
    first, second = alive[:24], alive[24:]
    assert len(second) == 24
    assert len(set(first[2:])) == 1
    assert max(second[8:]) <= max(second[:8])


def test_nothing_of_a_batch_outlives_the_analysis(collector: None):
    model = prepared()
    given = batches()
    before = live()
    report = dtme.analyze(model, task_losses, given)
    every = (getattr(report, field.name) for field in dataclasses.fields(report))
    kept = sum(value.numel() for value in every if isinstance(value, Tensor))
    assert live() - before <= 2 * kept  # of the rates, one tensor holds both spaces


def test_max_samples_reads_an_endless_stream_no_further():
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.randn(4, 5, 8)

    assert dtme.analyze(prepared(), task_losses, endless(), max_samples=10).samples == 12


def test_progress_sees_both_rounds():
    rounds = []

    def progress(items: Any, what: str) -> Any:
        rounds.append((what, len(list(items))))
        return items

    dtme.analyze(prepared(), task_losses, batches(), progress=progress)
    assert rounds == [("token space", 3), ("conflicts", 3)]
