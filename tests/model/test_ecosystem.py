"""After `apply` a model is still an ordinary model: copied, pickled, compiled, exported, checkpointed, distributed."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import TimmMultitask, timm_multitask, torch_encoder_multitask
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel

import dtme

TASKS = ("depth", "semseg", "scene")
BLOCK = "trunk.blocks.{}".format
PLANS = {
    "modulation": dtme.Plan(TASKS, {BLOCK(1): TASKS, BLOCK(3): ("scene",)}),
    "expansion": dtme.Plan(TASKS, expand={BLOCK(1): TASKS, BLOCK(3): TASKS}, tokens_per_task=2),
    "some of each": dtme.Plan(TASKS, {BLOCK(1): ("depth", "scene")}, {BLOCK(2): ("semseg",), BLOCK(3): ("depth",)}),
    "joint tokens": dtme.Plan(TASKS, {BLOCK(2): TASKS}, {BLOCK(1): TASKS}, joint_tokens=True),
    "batchnorm": dtme.Plan(TASKS, {BLOCK(1): TASKS, BLOCK(2): ("scene",)}, modulator="batchnorm"),
}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Outputs = dict[str, Tensor]


def filled(model: Any, plan: dtme.Plan) -> Any:
    dtme.apply(model, plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model


def applied(name: str) -> TimmMultitask:
    return filled(timm_multitask(TASKS), PLANS[name])


def loss_of(outputs: Outputs) -> Tensor:
    return torch.stack([outputs[task].square().mean() for task in TASKS]).sum()


def gradients(model: nn.Module) -> Outputs:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: Outputs, other: Outputs, tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_a_copy_is_a_model_of_its_own(name: str, duplicate: Callable[[Any], Any]):
    model = applied(name).eval()
    before = model(IMAGES)
    twin = duplicate(model)
    assert_same(twin(IMAGES), before)
    with dtme.tasks(twin, "depth"):  # the routing of the one is not that of the other
        assert len(twin(IMAGES)["scene"]) == 0
        assert_same(model(IMAGES), before)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    dtme.remove(twin)
    assert twin.state_dict().keys() == timm_multitask(TASKS).state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())
    assert_same(model(IMAGES), before)
    dtme.remove(model)
    assert_same(model(IMAGES), timm_multitask(TASKS).eval()(IMAGES))


@pytest.mark.parametrize("name", PLANS)
def test_state_dicts_go_both_ways(name: str):
    plain, model = timm_multitask(TASKS), applied(name)
    assert model.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    missing = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {key.split(".dtme.")[0] for key in missing} == set(PLANS[name].blocks)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    again = dtme.apply(timm_multitask(TASKS, seed=9), PLANS[name])
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same(again.eval()(IMAGES), model.eval()(IMAGES))
    base = {key: value for key, value in model.state_dict().items() if ".dtme." not in key}
    plain.load_state_dict(base)  # strict: base keys are unchanged


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", PLANS)
def test_compiled_whole(name: str, dynamo: None):
    model = applied(name)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs = compiled(IMAGES)
    assert_same(outputs, twin(IMAGES), 1e-6)
    loss_of(outputs).backward()
    loss_of(twin(IMAGES)).backward()
    model.eval(), twin.eval()
    if name != "batchnorm":  # the running statistics of the twin have seen one batch more
        assert_same(gradients(model), gradients(twin), 1e-5)
        with torch.no_grad(), dtme.tasks(compiled, "scene", "depth"), dtme.tasks(twin, "scene", "depth"):
            assert_same(compiled(IMAGES), twin(IMAGES), 1e-6)


@pytest.mark.parametrize(
    "plan", [PLANS["some of each"], dtme.Plan(TASKS, {f"{BLOCK(2)}.mlp": TASKS})], ids=["some of each", "in a part"]
)
def test_one_graph_is_compiled_for_training_steps_of_the_same_shapes(plan: dtme.Plan, dynamo: None):
    model = filled(timm_multitask(TASKS), plan)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter)
    for _ in range(3):
        loss_of(compiled(IMAGES)).backward()
        model.zero_grad(set_to_none=True)
    assert counter.frame_count == 1


def test_compiled_with_rows_of_their_own_tasks(dynamo: None):
    model = applied("modulation").eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with dtme.tasks(model, per_sample=["scene", "depth", "depth"]):
        assert_same(compiled(IMAGES), model(IMAGES), 1e-6)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # dynamo's own look
def test_compiled_without_fullgraph_it_is_right_whatever_the_version_of_torch(dynamo: None):
    model = applied("some of each").eval()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager")
    assert_same(compiled(IMAGES), twin(IMAGES), 1e-6)
    with dtme.tasks(model, "depth"), dtme.tasks(twin, "depth"):
        assert_same(compiled(IMAGES), twin(IMAGES), 1e-6)
        with ThreadPoolExecutor(1) as others:  # who has chosen nothing gets all tasks, whatever another thread chose
            assert_same(others.submit(compiled, IMAGES).result(), others.submit(twin, IMAGES).result(), 1e-6)
    with (
        dtme.tasks(model, per_sample=["scene", "depth", "depth"]),
        dtme.tasks(twin, per_sample=["scene", "depth", "depth"]),
    ):
        assert_same(compiled(IMAGES), twin(IMAGES), 1e-6)


def test_compiled_before_and_after_another_plan(dynamo: None):
    model = timm_multitask(TASKS).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    plain = compiled(IMAGES)
    for name in ("modulation", "some of each"):
        filled(model, PLANS[name])
        assert_same(compiled(IMAGES), copy.deepcopy(model)(IMAGES), 1e-6)
        assert not torch.allclose(compiled(IMAGES)["depth"], plain["depth"])
        dtme.remove(model)
    assert_same(compiled(IMAGES), plain, 1e-6)


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects happened:UserWarning")
@pytest.mark.parametrize(
    ("name", "strict"), [*((name, False) for name in PLANS), ("some of each", True), ("batchnorm", True)]
)
def test_exported(name: str, strict: bool, dynamo: None):
    model = applied(name).eval()
    program = torch.export.export(model, (IMAGES,), strict=strict)
    assert_same(program.module()(IMAGES), model(IMAGES), 1e-6)


def test_exported_for_batches_of_any_size_and_some_tasks():
    model = applied("some of each").eval()
    shapes = {"image": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=shapes, strict=False)
    more = torch.randn(7, 3, 32, 32)
    assert_same(program.module()(more), model(more), 1e-6)
    with dtme.tasks(model, "semseg"):
        alone = torch.export.export(model, (IMAGES,), strict=False).module()(IMAGES)
    torch.testing.assert_close(alone["semseg"], model(IMAGES)["semseg"])
    assert len(alone["depth"]) == 0


def test_timm_intermediates_in_the_users_model():
    class Intermediates(TimmMultitask):
        def forward(self, image: Tensor) -> Outputs:
            last, grids = self.trunk.forward_intermediates(image, indices=[0, 2, 3], norm=True)
            tokens = [grid.flatten(2).transpose(1, 2) for grid in grids]
            return {task: head(last + torch.stack([t.mean(1, keepdim=True) for t in tokens]).sum(0))
                    for task, head in self.heads.items()}  # fmt: skip

    def made() -> TimmMultitask:
        torch.manual_seed(0)
        return Intermediates(TASKS).eval()

    plain, model = made(), filled(made(), PLANS["some of each"])
    together = model(IMAGES)
    for task in TASKS:
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(IMAGES)[task], together[task], rtol=0, atol=1e-5)
        assert not torch.allclose(together[task], plain(IMAGES)[task])
    identity = dtme.apply(plain, PLANS["modulation"])
    assert_same(identity(IMAGES), made()(IMAGES), 1e-6)


@pytest.mark.parametrize("name", PLANS)
def test_checkpointed_activations_give_the_same_gradients(name: str):
    model = applied(name)
    twin = copy.deepcopy(model)
    twin.trunk.set_grad_checkpointing()
    for each in (model, twin):
        loss_of(each(IMAGES)).backward()
    assert len(gradients(model)) == len(list(model.parameters()))
    assert_same(gradients(model), gradients(twin), 1e-6)


@pytest.mark.parametrize("name", PLANS)
def test_autocast_and_low_precision(name: str):
    model = applied(name).eval()
    full = model(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(IMAGES)
    assert_same({task: output.float() for task, output in mixed.items()}, full, 0.1)
    for dtype in (torch.bfloat16, torch.float16):
        low = copy.deepcopy(model).to(dtype)
        outputs = low(IMAGES.to(dtype))
        assert {output.dtype for output in outputs.values()} == {dtype}
        assert_same({task: output.float() for task, output in outputs.items()}, full, 0.1)
        applied_later = filled(timm_multitask(TASKS).to(dtype), PLANS[name])
        assert {parameter.dtype for _, parameter in dtme.added_parameters(applied_later)} == {torch.float32}
        assert {output.dtype for output in applied_later(IMAGES.to(dtype)).values()} == {dtype}


@pytest.mark.parametrize("name", ["modulation", "some of each"])
def test_accumulated_gradients_are_those_of_the_whole_batch(name: str):
    model = applied(name)
    loss_of(model(IMAGES)).backward()
    whole = gradients(model)
    model.zero_grad()
    for image in IMAGES.split(1):
        (loss_of(model(image)) / 3).backward()
    assert_same(gradients(model), whole, 1e-5)


def test_batchnorm_modulators_normalise_the_tokens_of_each_task_by_its_own_statistics():
    model = timm_multitask(TASKS).double()
    seen: list[Tensor] = []
    model.trunk.blocks[2].norm1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    dtme.apply(model, dtme.Plan(TASKS, {BLOCK(1): TASKS, BLOCK(2): TASKS}, modulator="batchnorm"))
    with torch.no_grad():
        model.trunk.blocks[1].dtme.shift.normal_()  # so that the streams differ
    model.train()(IMAGES.double())
    for stream in seen[0].chunk(3):
        flat = stream.flatten(0, 1)
        torch.testing.assert_close(flat.mean(0), torch.zeros(16).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(flat.var(0, unbiased=False), torch.ones(16).double(), rtol=0, atol=1e-3)
    statistics = model.trunk.blocks[2].dtme.statistics
    assert len({tuple(row.tolist()) for row in statistics.mean}) == 3
    model.eval()
    together = model(IMAGES.double())
    with dtme.tasks(model, per_sample=TASKS):
        rows = model(IMAGES.double())
    for row, task in enumerate(TASKS):
        torch.testing.assert_close(rows[task][row], together[task][row], rtol=0, atol=1e-9)
    before = statistics.mean.clone()
    model.train()
    with dtme.tasks(model, "semseg"):
        model(IMAGES.double() * 2)
    assert (statistics.mean != before).any(1).tolist() == [False, True, False]


def test_optimiser_groups_take_the_added_parameters():
    model = applied("some of each")
    added = dict(dtme.added_parameters(model))
    rest = [parameter for name, parameter in model.named_parameters() if name not in added]
    optimiser = torch.optim.AdamW(
        [{"params": rest}, {"params": added.values(), "weight_decay": 0.0, "lr": 1e-2}], lr=1e-3
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss_of(model(IMAGES)).backward()
    optimiser.step()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def sentences(rows: slice) -> tuple[Tensor, Tensor]:
    return torch_encoder_multitask(True).draw(4, torch.Generator().manual_seed(3))[0][rows], torch.zeros(2, 7).bool()


ENCODER_PLAN = dtme.Plan(
    ("rating", "topic", "irony"), {"encoder.layers.1": ("rating", "irony")}, {"encoder.layers.2": ("topic",)}
)


def distributed_step(rank: int, store: str, result: str) -> None:
    """One of two processes, each with half of the batch, takes a step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = filled(torch_encoder_multitask(True), ENCODER_PLAN)
    parallel = DistributedDataParallel(model)
    for tasks in (ENCODER_PLAN.tasks, ("rating", "topic", "irony")):
        with dtme.tasks(parallel, *tasks):
            outputs = parallel(*sentences(slice(2 * rank, 2 * rank + 2)))
            torch.stack([output.square().mean() for output in outputs.values()]).sum().backward()
    if rank == 0:
        torch.save(gradients(model), result)
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path):
    torch.multiprocessing.spawn(distributed_step, (str(tmp_path / "store"), str(tmp_path / "gradients.pt")), nprocs=2)
    model = filled(torch_encoder_multitask(True), ENCODER_PLAN)
    words, padding = sentences(slice(0, 4)), torch.zeros(4, 7).bool()
    for _ in range(2):
        outputs = model(words[0], padding)
        torch.stack([output.square().mean() for output in outputs.values()]).sum().backward()
    assert_same(torch.load(tmp_path / "gradients.pt", weights_only=True), gradients(model), 1e-5)
