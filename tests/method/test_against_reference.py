"""The library against a literal float64 recomputation: what is measured, what is chosen, what is inserted."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import reference
import torch
from measured import assert_equals_reference, block_names, rows_dim
from models import (
    EncoderMultitask,
    TimmMultitask,
    TinyViT,
    loss,
    make_batches,
    task_losses,
    timm_multitask,
    tiny_vit,
    torch_encoder_multitask,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dtme

Model = TinyViT | TimmMultitask | EncoderMultitask

VISION, TEXT = ("depth", "semseg", "scene"), ("rating", "topic", "irony")
MODELS: dict[str, Callable[[], Model]] = {
    "vit": tiny_vit,
    "timm": timm_multitask,
    "encoder": lambda: torch_encoder_multitask(True),
    "encoder, rows second, post-norm": lambda: torch_encoder_multitask(False, norm_first=False),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small wait for a second thread far longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def original(name: str) -> Model:
    return MODELS[name]().double()


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return copy.deepcopy(original(request.param))


# What is measured --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """An analysis: a model, the sizes of its batches, the tasks labelled in each, and r."""

    make: Callable[[], Model]
    sizes: Sequence[int]
    present: Sequence[Sequence[str]] | None = None
    variance_ratio: float = 100.0


ANALYSES = {
    "odd final batch": Case(tiny_vit, (3, 3, 2)),
    "r = 1": Case(tiny_vit, (4, 1), variance_ratio=1.0),
    "rank held to 1": Case(tiny_vit, (4,), variance_ratio=0.01),
    "rank held to p - 1": Case(tiny_vit, (4,), variance_ratio=1e9),
    "gradients exactly zero at most tokens": Case(lambda: tiny_vit(causal=True), (3, 2)),
    "two tasks": Case(lambda: timm_multitask(("depth", "scene")), (2, 1), variance_ratio=10.0),
    "four tasks, two blocks": Case(lambda: timm_multitask(("depth", "semseg", "normals", "scene"), depth=2), (2, 2)),
    "batch of one": Case(timm_multitask, (1,)),
    "batches of one": Case(lambda: tiny_vit(seed=3), (1, 1, 1), variance_ratio=10.0),
    "padding": Case(lambda: torch_encoder_multitask(True), (3, 2)),
    "padding, rows second, post-norm, dropout": Case(
        lambda: torch_encoder_multitask(False, norm_first=False, dropout=0.1), (3, 1), variance_ratio=10.0
    ),
    "causal mask": Case(lambda: torch_encoder_multitask(True, causal=True), (7, 2), variance_ratio=10.0),
    "fewer tokens than channels": Case(lambda: torch_encoder_multitask(True, seed=1), (1,), variance_ratio=1e6),
    "tasks missing from some batches": Case(
        tiny_vit, (3, 2, 1, 3), (("semseg",), VISION, ("depth", "scene"), ("semseg", "depth"))
    ),
    "tasks that never share an input": Case(
        lambda: torch_encoder_multitask(True), (4, 2, 3, 1), (("topic",), ("rating",), ("irony",), ("topic",))
    ),
    "images that two tasks never share": Case(
        lambda: timm_multitask(("depth", "scene"), depth=2), (3, 1, 2), (("depth",), ("scene",), ("depth",))
    ),
    "two tasks share their inputs, the third has its own": Case(
        lambda: torch_encoder_multitask(False), (3, 4, 2), (("rating", "topic"), ("irony",), ("topic", "rating"))
    ),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_analysis_equals_the_reference(name: str):
    case = ANALYSES[name]
    model = case.make().double()
    batches = make_batches(model, case.sizes, present=case.present)
    report = dtme.analyze(model, task_losses, batches, variance_ratio=case.variance_ratio)
    assert_equals_reference(report, model, batches, case.variance_ratio)


def test_the_bounds_of_the_rank_are_reached():
    model = tiny_vit().double()
    batches = make_batches(model, (4,))
    ranks = {r: dtme.analyze(model, task_losses, batches, variance_ratio=r).range_rank for r in (0.01, 1e9)}
    assert [int(m) for m in ranks[0.01]] == [1] * 4
    assert [int(m) for m in ranks[1e9]] == [15] * 4


def test_rows_of_one_batch_that_belong_to_different_tasks():
    model = torch_encoder_multitask(True, ("rating", "topic")).double()
    batches = make_batches(model, (4, 4))
    for batch, rows in zip(batches, ([True, True, False, False], [False, True, False, True]), strict=True):
        own = torch.tensor(rows)
        batch["rows"] = {"rating": own, "topic": ~own}
    assert_equals_reference(dtme.analyze(model, task_losses, batches), model, batches, 100.0)


def test_token_gradients_of_the_reference_are_derivatives(model: Model):
    (batch,) = make_batches(model, (2,))
    block, task = block_names(model)[2], model.tasks[0]
    tokens, gradient = reference.token_gradients(model, block, task_losses, batch, task, rows_dim(model))

    def loss_along(step: Tensor) -> float:
        def shift(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0] + step.movedim(0, rows_dim(model)), *args[1:])

        with model.get_submodule(block).register_forward_pre_hook(shift), torch.no_grad():
            return task_losses(model, batch)[task].item()

    direction = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = (loss_along(1e-5 * direction) - loss_along(-1e-5 * direction)) / 2e-5
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


# What is chosen ----------------------------------------------------------------------------------------------------


@pytest.fixture
def report() -> dtme.ConflictReport:
    """A report whose rates are drawn, so that no two scores are equal."""
    model = tiny_vit(depth=5).double()
    report = dtme.analyze(model, task_losses, make_batches(model, (1,)))
    rates = torch.rand(2, 5, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).triu(1)
    report.range_rate[:], report.null_rate[:] = rates + rates.transpose(-1, -2)
    return report


@pytest.mark.parametrize("select", ["conflict", "swapped", "reversed"])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.75, 1.0])
def test_plan_takes_the_highest_blocks_of_each_ranking(report: dtme.ConflictReport, select: Any, fraction: float):
    by_range = torch.as_tensor(report.range_score()).tolist()
    by_null = torch.as_tensor(report.null_score()).tolist()
    if select == "swapped":
        by_range, by_null = by_null, by_range
    if select == "reversed":
        by_range, by_null = [-score for score in by_range], [-score for score in by_null]
    plan = report.plan(fraction=fraction, select=select)
    assert dict(plan.modulate) == {report.blocks[d]: report.tasks for d in reference.highest(by_range, fraction)}
    assert dict(plan.expand) == {report.blocks[d]: report.tasks for d in reference.highest(by_null, fraction)}


def test_equal_scores_go_to_the_later_block():
    model = tiny_vit().double()
    report = dtme.analyze(model, task_losses, make_batches(model, (2,)))
    report.range_rate[:] = report.range_rate[0]
    report.null_rate[:] = report.null_rate[0]
    plan = report.plan(fraction=0.5)
    assert set(plan.modulate) == set(plan.expand) == {"blocks.2", "blocks.3"}


def test_scores_that_differ_by_rounding_alone_are_equal():
    model = tiny_vit().double()
    report = dtme.analyze(model, task_losses, make_batches(model, (2,)))
    first, second = [0, 0, 1], [1, 2, 2]
    for d, conflicting in enumerate([(6, 2, 1), (6, 1, 2)] * 2):  # the same three rates, summed in another order
        for rates in (report.range_rate, report.null_rate):
            rates[d, first, second] = rates[d, second, first] = torch.tensor(conflicting, dtype=rates.dtype) / 15
    plan = report.plan(fraction=0.5)
    assert set(plan.modulate) == set(plan.expand) == {"blocks.2", "blocks.3"}


def test_plan_of_one_kind(report: dtme.ConflictReport):
    both = report.plan(fraction=0.4)
    assert (report.plan(fraction=0.4, expansion=False).modulate, both.modulate) == (both.modulate, both.modulate)
    assert not report.plan(fraction=0.4, expansion=False).expand
    assert report.plan(fraction=0.4, modulation=False).expand == both.expand
    assert not report.plan(fraction=0.4, modulation=False).modulate
    assert report.plan(fraction=0.4, tokens_per_task=3).tokens_per_task == 3


def test_random_plans_have_the_same_size_and_follow_the_seed(report: dtme.ConflictReport):
    plans = [report.plan(select="random", seed=seed) for seed in range(8)]
    assert {len(plan.modulate) for plan in plans} == {len(plan.expand) for plan in plans} == {3}
    assert len({frozenset(plan.modulate) for plan in plans}) > 1
    assert report.plan(select="random", seed=5) == plans[5]


def test_threshold_serves_the_tasks_of_conflicting_pairs(report: dtme.ConflictReport):
    pairs = torch.cat([report.range_rate, report.null_rate])
    values = pairs[pairs > 0].unique().tolist()
    served = set()
    for low, high in pairwise(values):
        plan = report.plan(fraction=1.0, pair_threshold=(low + high) / 2)
        for kind, rates in ((plan.modulate, report.range_rate), (plan.expand, report.null_rate)):
            expected = {
                block: reference.conflicting_tasks(rate, report.tasks, (low + high) / 2)
                for block, rate in zip(report.blocks, rates, strict=True)
            }
            assert dict(kind) == {block: tasks for block, tasks in expected.items() if tasks}
            served |= {len(tasks) for tasks in expected.values()}
    assert served == {0, 2, 3}


# What is inserted --------------------------------------------------------------------------------------------------

PLANS: dict[str, dict[str, Any]] = {
    "modulation": {"modulate": {1: "abc", 3: "abc"}},
    "modulation from the first block": {"modulate": {0: "abc"}},
    "expansion": {"expand": {1: "abc", 2: "abc"}},
    "both": {"modulate": {0: "abc", 2: "abc"}, "expand": {2: "abc", 3: "abc"}, "tokens_per_task": 2},
    "some tasks modulated": {"modulate": {1: "b", 2: "ac", 3: "bc"}},
    "one task modulated": {"modulate": {2: "c"}},
    "some tasks expanded": {"expand": {1: "b", 3: "ab"}},
    "one task expanded": {"expand": {2: "c"}, "tokens_per_task": 3},
    "some of each": {"modulate": {1: "a", 3: "ac"}, "expand": {1: "c", 2: "ab", 3: "abc"}},
    "last block": {"modulate": {3: "abc"}, "expand": {3: "abc"}},
}
MODULATIONS = ["modulation", "modulation from the first block", "some tasks modulated", "one task modulated"]


def make_plan(model: Model, name: str) -> dtme.Plan:
    """A plan of `PLANS` in the model's own names."""
    spec, blocks = PLANS[name], block_names(model)
    named = {"a": model.tasks[0], "b": model.tasks[1], "c": model.tasks[2]}
    inserts: dict[str, Any] = {
        kind: {blocks[d]: tuple(named[letter] for letter in letters) for d, letters in spec.get(kind, {}).items()}
        for kind in ("modulate", "expand")
    }
    return dtme.Plan(tasks=model.tasks, **inserts, tokens_per_task=spec.get("tokens_per_task", 1))


def inserts_of(plan: dtme.Plan) -> reference.Inserts:
    return {"modulate": dict(plan.modulate), "expand": dict(plan.expand)}


def fill(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random values for every inserted parameter; copies of them, as leaves, by name."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, parameter in dtme.added_parameters(model):
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values[name] = (drawn * 0.5 + name.endswith("scale")).requires_grad_()
        with torch.no_grad():
            parameter.copy_(values[name])
    return values


def applied(model: Model, name: str) -> tuple[Model, dtme.Plan, dict[str, Tensor]]:
    """A copy of the model with a plan applied and filled, the plan, and the values."""
    plan = make_plan(model, name)
    changed = copy.deepcopy(model)
    assert dtme.apply(changed, plan) is changed
    return changed, plan, fill(changed)


CLOSE = {"rtol": 0, "atol": 1e-11}


@pytest.mark.parametrize("name", PLANS)
def test_inserted_parameters_have_the_shapes_and_names_of_the_plan(name: str):
    model = original("vit")
    changed, plan, _ = applied(model, name)
    p = 16
    expected = {}
    for block, tasks in plan.modulate.items():
        expected |= {f"{block}.dtme.scale": (len(tasks), p), f"{block}.dtme.shift": (len(tasks), p)}
    for block, tasks in plan.expand.items():
        expected[f"{block}.dtme.tokens"] = (len(tasks), plan.tokens_per_task, p)
    assert {key: tuple(value.shape) for key, value in dtme.added_parameters(changed)} == expected
    assert {key: tuple(value.shape) for key, value in changed.state_dict().items()} == expected | {
        key: tuple(value.shape) for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("name", PLANS)
def test_outputs_and_gradients_equal_one_task_at_a_time(model: Model, name: str):
    changed, plan, values = applied(model, name)
    (batch,) = make_batches(model, (3,))

    outputs = changed(*batch["inputs"])
    expected = {
        task: reference.forward_one_task(model, task, inserts_of(plan), values, batch["inputs"]) for task in model.tasks
    }
    for task in model.tasks:
        torch.testing.assert_close(outputs[task], expected[task], **CLOSE)

    weights = dict(zip(model.tasks, (1.0, 0.3, 2.0), strict=True))
    losses = task_losses(changed, batch)
    torch.stack([weights[task] * losses[task] for task in model.tasks]).sum().backward()
    for task in model.tasks:
        (weights[task] * loss(expected[task], batch["targets"][task])).backward()

    trunk = dict(model.named_parameters()) | values
    gradients = {key: parameter.grad for key, parameter in changed.named_parameters()}
    assert gradients.keys() == trunk.keys()
    assert all(gradient is not None and gradient.any() for key, gradient in gradients.items() if ".dtme." in key)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, trunk[key].grad, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["both", "some of each"])
def test_outputs_in_evaluation_without_gradients(model: Model, name: str):
    changed, plan, values = applied(model.eval(), name)
    (batch,) = make_batches(model, (1,))
    with torch.no_grad():
        outputs = changed(*batch["inputs"])
        for task in model.tasks:
            one = reference.forward_one_task(model, task, inserts_of(plan), values, batch["inputs"])
            torch.testing.assert_close(outputs[task], one, **CLOSE)


@pytest.mark.parametrize("name", MODULATIONS[1:3])
def test_modulators_change_nothing_at_the_start(model: Model, name: str):
    changed = dtme.apply(copy.deepcopy(model), make_plan(model, name))
    (batch,) = make_batches(model, (3,))
    before, after = model(*batch["inputs"]), changed(*batch["inputs"])
    for task in model.tasks:
        torch.testing.assert_close(after[task], before[task], rtol=0, atol=1e-12)


ANY_ROWS = [key for key in MODELS if key != "vit"]
"""Models whose heads take any number of rows; those of `TinyViT` insist on the image's."""


@pytest.mark.parametrize("model", ANY_ROWS, indirect=True)
@pytest.mark.parametrize("name", PLANS)
def test_a_named_task_alone_is_that_task_among_all(model: Model, name: str):
    changed, _, _ = applied(model, name)
    (batch,) = make_batches(model, (3,))
    together = changed(*batch["inputs"])
    for task in model.tasks:
        with dtme.tasks(changed, task):
            alone = changed(*batch["inputs"])
        torch.testing.assert_close(alone[task], together[task], **CLOSE)
        for other in set(model.tasks) - {task}:
            assert len(alone[other]) == 0
    torch.testing.assert_close(changed(*batch["inputs"]), together, **CLOSE)


def test_branches_that_are_told_the_batch_size_cannot_take_no_rows():
    """A documented limit of `dtme.tasks(model, name)`: it fails loudly, and the pass of all tasks works."""
    model, _, _ = applied(original("vit"), "both")
    (batch,) = make_batches(model, (3,))
    model(*batch["inputs"])
    with dtme.tasks(model, "depth"), pytest.raises(RuntimeError, match="input of size 0"):
        model(*batch["inputs"])


@pytest.mark.parametrize("name", ["expansion", "both", "some of each"])
def test_joint_task_tokens_are_seen_by_every_task(model: Model, name: str):
    plan = dataclasses.replace(make_plan(model, name), joint_tokens=True)
    changed = copy.deepcopy(model)
    dtme.apply(changed, plan)
    values = fill(changed)
    (batch,) = make_batches(model, (3,))
    outputs = changed(*batch["inputs"])
    for task in model.tasks:
        one = reference.forward_one_task(model, task, inserts_of(plan), values, batch["inputs"], joint=True)
        torch.testing.assert_close(outputs[task], one, **CLOSE)
    only_modulators = {"modulate": plan.modulate, "expand": {}}
    streams = reference.streams(block_names(model), model.tasks, only_modulators)
    assert rows_per_block(changed, lambda: changed(*batch["inputs"])) == [3 * count for count in streams]


@pytest.mark.parametrize("name", PLANS)
def test_rows_with_tasks_of_their_own_equal_one_task_at_a_time(model: Model, name: str):
    changed, plan, values = applied(model, name)
    (batch,) = make_batches(model, (5,))
    ids = torch.tensor([2, 0, 1, 0, 2])
    with dtme.tasks(changed, per_sample=ids):
        outputs = changed(*batch["inputs"])
    own_rows = [outputs[task][ids == i].square().sum() for i, task in enumerate(model.tasks)]
    torch.stack(own_rows).sum().backward()
    for i, task in enumerate(model.tasks):
        assert len(outputs[task]) == 5
        for row in torch.nonzero(ids == i).flatten().tolist():
            inputs = tuple(tensor[row : row + 1] for tensor in batch["inputs"])
            one = reference.forward_one_task(model, task, inserts_of(plan), values, inputs)
            torch.testing.assert_close(outputs[task][row : row + 1], one, **CLOSE)
            one.square().sum().backward()
    trunk = dict(model.named_parameters()) | values
    for key, parameter in changed.named_parameters():
        torch.testing.assert_close(parameter.grad, trunk[key].grad, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("b", [3, 7])
@pytest.mark.parametrize("causal", [False, True], ids=["padding", "padding and causal"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["rows first", "rows second"])
@pytest.mark.parametrize("name", ["modulation", "expansion", "some of each"])
def test_masks_follow_their_samples_and_their_words(name: str, batch_first: bool, causal: bool, b: int):
    """Also where there are as many samples as words, seven, and a mask's shape does not say which is which."""
    model = torch_encoder_multitask(batch_first, causal=causal).double()
    changed, plan, values = applied(model, name)
    (batch,) = make_batches(model, (b,))
    expected = {
        task: reference.forward_one_task(model, task, inserts_of(plan), values, batch["inputs"]) for task in model.tasks
    }
    outputs = changed(*batch["inputs"])
    ids = torch.arange(b) % 3
    with dtme.tasks(changed, per_sample=ids):
        mixed = changed(*batch["inputs"])
    for i, task in enumerate(model.tasks):
        with dtme.tasks(changed, task):
            alone = changed(*batch["inputs"])
        torch.testing.assert_close(outputs[task], expected[task], **CLOSE)
        torch.testing.assert_close(alone[task], expected[task], **CLOSE)
        torch.testing.assert_close(mixed[task][ids == i], expected[task][ids == i], **CLOSE)


@pytest.mark.parametrize("name", ["modulation", "one task expanded", "some of each"])
def test_removed_is_never_applied(model: Model, name: str):
    changed, _, _ = applied(model, name)
    (batch,) = make_batches(model, (3,))
    changed(*batch["inputs"])
    dtme.remove(changed)
    assert changed.state_dict().keys() == model.state_dict().keys()
    hook_dictionaries = [key for key in vars(model) if key.endswith("hooks")]
    assert "_forward_pre_hooks" in hook_dictionaries
    for (path, module), (same, original) in zip(changed.named_modules(), model.named_modules(), strict=True):
        assert path == same
        assert type(module) is type(original)
        assert vars(module).keys() == vars(original).keys(), path
        for key in hook_dictionaries:
            assert not vars(module)[key], f"{path or 'model'}.{key}"
    before, after = model(*batch["inputs"]), changed(*batch["inputs"])
    assert all(torch.equal(after[task], before[task]) for task in model.tasks)


# What it costs -----------------------------------------------------------------------------------------------------


def rows_per_block(model: Model, run: Callable[[], Any]) -> list[int]:
    """Rows that pass the feed-forward part of every block while `run` runs."""
    counts = [0] * len(block_names(model))

    def count(d: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            counts[d] += args[0].shape[rows_dim(model)]

        return hook

    inner = "linear1" if isinstance(model, EncoderMultitask) else "mlp"
    handles = [
        model.get_submodule(f"{block}.{inner}").register_forward_pre_hook(count(d))
        for d, block in enumerate(block_names(model))
    ]
    run()
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("model", ANY_ROWS[1:], indirect=True)
@pytest.mark.parametrize("name", PLANS)
def test_streams_part_where_the_plan_says(model: Model, name: str):
    changed, plan, _ = applied(model, name)
    b = 3
    (batch,) = make_batches(model, (b,))

    def streams(tasks: Sequence[str]) -> list[int]:
        return [b * count for count in reference.streams(block_names(model), tasks, inserts_of(plan))]

    assert rows_per_block(changed, lambda: changed(*batch["inputs"])) == streams(model.tasks)
    for tasks in [model.tasks[:1], model.tasks[1:]]:
        with dtme.tasks(changed, *tasks):
            assert rows_per_block(changed, lambda: changed(*batch["inputs"])) == streams(tasks)
    with dtme.tasks(changed, per_sample=torch.tensor([0, 1, 2])):
        assert rows_per_block(changed, lambda: changed(*batch["inputs"])) == [b] * 4


def flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [*MODULATIONS, "expansion", "both", "last block"])
@pytest.mark.parametrize("make", [tiny_vit, timm_multitask])
def test_operations_are_the_streams_times_the_blocks(make: Callable[[], Model], name: str):
    model = make().double()
    changed, plan, _ = applied(model, name)
    (batch,) = make_batches(model, (3,))
    n = 17 if isinstance(model, TimmMultitask) else 5
    expected = flops(lambda: model(*batch["inputs"]))
    streams = reference.streams(block_names(model), model.tasks, inserts_of(plan))
    for block, count in zip(block_names(model), streams, strict=True):
        module = model.get_submodule(block)
        longer = n + plan.tokens_per_task * (block in plan.expand)
        plain, parted = (torch.randn(3, length, 16, dtype=torch.float64) for length in (n, longer))
        expected += count * flops(lambda m=module, t=parted: m(t)) - flops(lambda m=module, t=plain: m(t))
    assert flops(lambda: changed(*batch["inputs"])) == expected
