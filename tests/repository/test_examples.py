"""Decoders in which tasks meet again: each task enters with its own stream, and every property holds as elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dtme
import invpt
import taskprompter
from dtme._pytree import tensors_of
from dtme.streams.tensor import Streams
from dtme.trunk.blocks import find_blocks

TASKS = ("semseg", "depth", "normals")
CHANNELS = {"semseg": 4, "depth": 1, "normals": 3}
SIZE = 32
IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Values = Mapping[str, Tensor]


class InvPT:
    """How the tests take `examples/invpt.py` apart."""

    blocks = tuple(f"trunk.blocks.{d}" for d in range(6))
    named = r"trunk\.blocks\.\d+"
    decoder = "decoder"

    @staticmethod
    def make() -> nn.Module:
        return invpt.InvPT(CHANNELS, size=SIZE, width=24)

    @staticmethod
    def took(model: Any, task: str, images: Tensor) -> Any:
        return model.preliminary[task](model.encode(images))

    @staticmethod
    def decode(model: Any, took: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        small = {task: (final, took[task].preliminary) for task, final in model.decoder(took).items()}
        return {
            task: [F.interpolate(x, size=(SIZE, SIZE), mode="bilinear") for x in both] for task, both in small.items()
        }


class TaskPrompter:
    """How the tests take `examples/taskprompter.py` apart."""

    blocks = tuple(f"trunk.levels.{level}.blocks.{d}" for level in range(3) for d in range(2))
    named = None
    decoder = "reweighting"

    @staticmethod
    def make() -> nn.Module:
        return taskprompter.TaskPrompter(CHANNELS, size=SIZE, width=24)

    @staticmethod
    def took(model: Any, task: str, images: Tensor) -> Any:
        return model.decoders[task](model.trunk(images))

    @staticmethod
    def decode(model: Any, took: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        return {task: [model.heads[task](features)] for task, features in model.reweighting(took).items()}


Example = type[InvPT] | type[TaskPrompter]


@pytest.fixture(params=[InvPT, TaskPrompter], ids=["invpt", "taskprompter"])
def example(request: pytest.FixtureRequest) -> Example:
    return request.param


def made(example: Example) -> nn.Module:
    """A model in evaluation mode whose weights and batch statistics are drawn, and with them every output."""
    torch.manual_seed(0)
    model = example.make().double().eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def plan_of(example: Example, name: str) -> dtme.Plan:
    b, (one, two, three) = example.blocks, TASKS
    return {
        "modulation": dtme.Plan(TASKS, {b[0]: TASKS, b[4]: TASKS}),
        "some tasks modulated": dtme.Plan(TASKS, {b[2]: (two,), b[5]: (one, three)}),
        "expansion": dtme.Plan(TASKS, expand={b[1]: TASKS, b[3]: (one, two)}, tokens_per_task=2),
        "adaptation": dtme.Plan(TASKS, adapt={b[3]: TASKS}, rank=2),
        "all": dtme.Plan(TASKS, {b[2]: TASKS, b[3]: (two,)}, {b[3]: (one, three), b[5]: TASKS}, adapt={b[4]: (one,)}),
    }[name]


PLANS = ["modulation", "some tasks modulated", "expansion", "adaptation", "all"]


def outputs(model: nn.Module, images: Tensor = IMAGES) -> dict[str, list[Tensor]]:
    return {task: list(tensors_of(output)) for task, output in model(images).items()}


def assert_close(
    one: Mapping[str, Sequence[Tensor]], other: Mapping[str, Sequence[Tensor]], atol: float = 1e-10
) -> None:
    assert one.keys() == other.keys()
    for task, tensors in one.items():
        for tensor, wanted in zip(tensors, other[task], strict=True):
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=atol, msg=lambda text, t=task: f"{t}: {text}")


def differ(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether the final predictions, which stand first, do."""
    return (one[0] - other[0]).abs().max().item() > 1e-4 * other[0].abs().max().item()


def fill(model: nn.Module) -> dict[str, Tensor]:
    """Random values for every inserted parameter; copies of them by name."""
    generator = torch.Generator().manual_seed(1)
    values = {}
    for name, parameter in dtme.added_parameters(model):
        drawn = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values[name] = drawn + name.endswith("scale")
        with torch.no_grad():
            parameter.copy_(values[name])
    return values


def filled(example: Example, name: str) -> tuple[nn.Module, dtme.Plan, dict[str, Tensor]]:
    plan = plan_of(example, name)
    model = dtme.apply(made(example), plan)
    return model, plan, fill(model)


# By hand: the plain model, one pass of its trunk per task -----------------------------------------------------------


@contextmanager
def inserted(model: nn.Module, task: str, plan: dtme.Plan, values: Values) -> Iterator[None]:
    """A plain model whose blocks do what the plan says for one task: T <- W T + b, tokens behind, B A x on top."""

    def before(name: str, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, *others = args
        if task in (modulated := plan.modulate.get(name, ())):
            row = modulated.index(task)
            tokens = (1 + values[f"{name}.dtme.scale"][row]) * tokens + values[f"{name}.dtme.shift"][row]
        if task in (expanded := plan.expand.get(name, ())):
            extra = values[f"{name}.dtme.tokens"][expanded.index(task)]
            tokens = torch.cat([tokens, torch.stack([extra] * len(tokens))], 1)
        return tokens, *others

    def after(name: str, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        n = args[0].shape[1] - (plan.tokens_per_task if task in plan.expand.get(name, ()) else 0)
        if isinstance(output, tuple):
            return output[0][:, :n], output[1][:, :, :n, :n]
        return output[:, :n]

    def on_top(down: Tensor, up: Tensor, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + args[0] @ down.mT @ up.mT

    handles = []
    for name in plan.blocks:
        block = model.get_submodule(name)
        handles += [
            block.register_forward_pre_hook(partial(before, name)),
            block.register_forward_hook(partial(after, name)),
        ]
        if task not in (adapted := plan.adapt.get(name, ())):
            continue
        for own, layer in block.named_modules():
            if isinstance(layer, nn.Linear):
                down, up = (values[f"{name}.dtme.low_rank.{own.replace('.', '-')}.{part}"] for part in ("down", "up"))
                row = adapted.index(task)
                handles.append(layer.register_forward_hook(partial(on_top, down[row], up[row])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_hand(
    example: Example, plan: dtme.Plan, values: Values, images: Tensor = IMAGES, stream: str | None = None,
    tasks: Iterable[str] = TASKS,
) -> dict[str, list[Tensor]]:  # fmt: skip
    """Each task's features from a trunk of its own (or all from that of `stream`), then the decoder on all of them."""
    model, took = made(example), {}
    for task in tasks:
        with inserted(model, stream or task, plan, values):
            took[task] = example.took(model, task, images)
    return example.decode(model, took)


@pytest.mark.parametrize("name", PLANS)
def test_each_task_enters_with_its_own_stream_and_then_they_meet(example: Example, name: str):
    model, plan, values = filled(example, name)
    given = outputs(model)
    assert_close(given, by_hand(example, plan, values))
    plain = outputs(made(example))
    assert all(differ(given[task], plain[task]) for task in TASKS)  # also those the plan gives nothing: tasks meet


def test_what_one_task_is_given_reaches_the_others_through_the_decoder_alone(example: Example):
    plan = dtme.Plan(TASKS, {example.blocks[3]: ("depth",)})
    model = dtme.apply(made(example), plan)
    fill(model)
    met: list[Tensor] = []
    model.get_submodule(example.decoder).register_forward_pre_hook(lambda module, args: met.extend(tensors_of(args)))
    given, plain = outputs(model), made(example)
    assert met
    assert not any(isinstance(tensor, Streams) for tensor in met)
    for task in TASKS:
        own = list(tensors_of(example.took(plain, task, IMAGES)))
        again = list(tensors_of(example.took(model, task, IMAGES)))
        same = all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(own, again, strict=True))
        assert same == (task != "depth")
        assert differ(given[task], outputs(plain)[task])


def test_the_decoder_runs_once_and_the_trunk_once_up_to_the_first_insert(example: Example):
    model, _, _ = filled(example, "some tasks modulated")
    rows: dict[str, list[int]] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        rows.setdefault(name, []).append(len(next(tensors_of(args))))

    for name in example.blocks:  # the attention inside: what enters a block has not been folded yet
        inside = next(m for own, m in model.get_submodule(name).named_modules() if own in ("attn", "attention"))
        inside.register_forward_pre_hook(partial(note, name))
    model.get_submodule(example.decoder).register_forward_pre_hook(partial(note, "decoder"))
    model(IMAGES)
    assert [rows[name] for name in example.blocks] == [[2], [2], [4], [4], [4], [6]]
    assert rows["decoder"] == [2]


class Unparted(invpt.InvPT):
    """Earlier features go into the decoder past the branches, as all streams together."""

    def forward(self, images: Tensor) -> Any:
        levels = self.encode(images)
        left = {task: leave(levels)._replace(earlier=levels[-2::-1]) for task, leave in self.preliminary.items()}
        return self.decoder(left)


def test_what_meets_past_the_branches_meets_once_per_stream():
    plan = plan_of(InvPT, "all")
    model = made(InvPT)
    model.__class__ = Unparted
    dtme.apply(model, plan)
    values, plain = fill(model), made(InvPT)
    took = {}
    for task in TASKS:
        with inserted(plain, task, plan, values):
            took[task] = InvPT.took(plain, task, IMAGES)
    for task, given in outputs(model).items():
        left = {other: own._replace(earlier=took[task].earlier) for other, own in took.items()}
        assert_close({task: given}, {task: [plain.decoder(left)[task]]})


# The properties of every other model --------------------------------------------------------------------------------


def losses_of(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    return {task: torch.stack([t.square().mean() for t in own]).sum() for task, own in outputs(model, batch).items()}


def test_analysis_measures_the_blocks_of_the_trunk(example: Example):
    model = made(example)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = dtme.analyze(model, losses_of, [IMAGES], blocks=example.named)
    assert report.blocks == example.blocks
    assert report.tasks == TASKS
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    plan = report.plan(fraction=0.5)
    assert set(plan.blocks) <= set(example.blocks)
    dtme.apply(model, plan)
    assert_close(outputs(model), by_hand(example, plan, {n: p.detach() for n, p in dtme.added_parameters(model)}))


def test_a_decoder_that_holds_attention_is_no_trunk_and_is_told_apart_by_name():
    model = made(InvPT)
    stages = tuple(f"decoder.stages.{s}" for s in range(3))
    assert tuple(find_blocks(model)) == (*InvPT.blocks, *stages)
    assert tuple(find_blocks(model, InvPT.named)) == InvPT.blocks
    assert tuple(find_blocks(made(TaskPrompter))) == TaskPrompter.blocks
    with pytest.raises(ValueError, match=r"block 'decoder\.stages\.0': .* Name those of the trunk: blocks="):
        dtme.analyze(model, losses_of, [IMAGES])


@pytest.mark.parametrize("name", ["modulation", "some tasks modulated", "adaptation"])
def test_nothing_changes_until_something_is_learnt(example: Example, name: str):
    model = dtme.apply(made(example), plan_of(example, name))
    assert_close(outputs(model), outputs(made(example)))


@pytest.mark.parametrize("name", ["expansion", "all"])
def test_gradients_reach_every_added_parameter_and_a_step_lowers_the_loss(example: Example, name: str):
    model, _, _ = filled(example, name)
    added = [parameter for _, parameter in dtme.added_parameters(model)]
    optimizer = torch.optim.SGD(added, lr=1e-3)
    seen = []
    for _ in range(3):
        loss = torch.stack(list(losses_of(model.train(), IMAGES).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.flatten(1).any(1).all() for parameter in added)
        optimizer.step()
        seen.append(loss.item())
    assert seen[2] < seen[1] < seen[0]


@pytest.mark.parametrize("alone", [("depth",), ("normals", "semseg")])
def test_tasks_computed_without_the_others_meet_without_them(example: Example, alone: tuple[str, ...]):
    model, plan, values = filled(example, "all")
    with dtme.tasks(model, *alone):
        given = outputs(model)
    ordered = [task for task in TASKS if task in alone]
    assert_close(given, by_hand(example, plan, values, tasks=ordered))
    together = outputs(model)
    assert all(differ(given[task], together[task]) for task in alone)


def test_a_row_of_one_task_meets_the_others_within_its_own_stream(example: Example):
    model, plan, values = filled(example, "all")
    with dtme.tasks(model, per_sample=["normals", "semseg"]):
        given = outputs(model)
    for row, task in enumerate(("normals", "semseg")):
        wanted = by_hand(example, plan, values, stream=task)
        assert_close({task: [t[row] for t in given[task]]}, {task: [t[row] for t in wanted[task]]})


def test_saved_and_loaded(example: Example, tmp_path: Path):
    model, _, _ = filled(example, "all")
    dtme.save_pretrained(model, tmp_path)
    again = dtme.load_pretrained(made(example), tmp_path)
    assert_close(outputs(again), outputs(model), 0.0)


@pytest.mark.parametrize("name", ["all", "expansion"])
def test_removed_bit_for_bit(example: Example, name: str):
    model, _, _ = filled(example, name)
    model(IMAGES)
    dtme.remove(model)
    plain = made(example)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert_close(outputs(model), outputs(plain), 0.0)


def test_a_copy_is_a_model_of_its_own(example: Example):
    model, _, _ = filled(example, "all")
    before = outputs(model)
    twin = copy.deepcopy(model)
    assert_close(outputs(twin), before, 0.0)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    with dtme.tasks(twin, "depth"):
        assert_close(outputs(model), before, 0.0)


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_whole(example: Example, dynamo: None):
    model, _, _ = filled(example, "all")
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for each in (compiled, twin):
        torch.stack(list(losses_of(each, IMAGES).values())).sum().backward()
    assert_close(outputs(compiled), outputs(twin))
    for (name, parameter), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        if other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-8, atol=1e-10)


def test_the_scripts_run(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path))
    module = invpt if example is InvPT else taskprompter
    module.main(steps=1, images=8)
    said = capsys.readouterr().out
    assert said.count("step 1: loss ") == 2
    assert "4 tasks (semseg, depth, normals, edges), 8 samples" in said
    assert all(said.count(block) >= 1 for block in example.blocks)
    assert said.count(".dtme.scale: (4, 48)") == said.count(".dtme.tokens: (4, 1, 48)") == 3
