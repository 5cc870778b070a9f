"""After `apply` a model trains over several processes as it does in one: replicated (DDP) or sharded (FSDP2)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crew import Crew
from models import make_batches, task_losses, timm_multitask, tiny_vit, torch_encoder_multitask
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

import dtme
from dtme.checkpoint import files as checkpoint_files

Crews = Callable[[int], Crew]
VISION, WORDS = ("depth", "semseg", "scene"), ("rating", "topic", "irony")
BLOCK, LAYER = "trunk.blocks.{}".format, "encoder.layers.{}".format
MODELS: dict[str, Callable[[], Any]] = {
    "timm": lambda: timm_multitask(VISION),
    "encoder": lambda: torch_encoder_multitask(True),
    "tokens first": lambda: torch_encoder_multitask(False),
}
PLANS = {
    "modulation": dtme.Plan(VISION, {BLOCK(1): VISION, BLOCK(3): ("scene",)}),
    "expansion": dtme.Plan(VISION, expand={BLOCK(1): VISION, BLOCK(3): VISION}, tokens_per_task=2),
    "adaptation": dtme.Plan(VISION, adapt={BLOCK(1): ("semseg", "scene"), BLOCK(3): VISION}, rank=2),
    "some of each": dtme.Plan(
        VISION,
        {BLOCK(1): ("depth", "scene")},
        {BLOCK(2): ("semseg",), BLOCK(3): ("depth",)},
        {BLOCK(3): VISION},
    ),
    "joint tokens": dtme.Plan(VISION, {BLOCK(2): VISION}, {BLOCK(1): VISION}, joint_tokens=True),
}
ENCODER = dtme.Plan(WORDS, {LAYER(1): ("rating", "irony")}, {LAYER(2): ("topic",)}, {LAYER(3): WORDS})
CASES = [*(("timm", name) for name in PLANS), ("encoder", "encoder"), ("tokens first", "encoder")]


def plan_of(name: str) -> dtme.Plan:
    return ENCODER if name == "encoder" else PLANS[name]


def filled(model: Any, plan: dtme.Plan) -> Any:
    dtme.apply(model.double(), plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.add_(torch.rand(parameter.shape, generator=generator).to(parameter) * 0.5)
    return model


def inputs_of(made: str, rows: slice) -> tuple[Tensor, ...]:
    drawn = MODELS[made]().double().draw(4, torch.Generator().manual_seed(3))
    if made != "timm":
        drawn = (drawn[0], torch.zeros_like(drawn[0], dtype=torch.bool))  # padding would weigh the halves differently
    return tuple(tensor[rows] for tensor in drawn)


def blocks_of(model: Any) -> list[nn.Module]:
    return list(model.trunk.blocks if hasattr(model, "trunk") else model.encoder.layers)


def sharded(model: Any, *modules: nn.Module) -> Any:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for module in (*blocks_of(model), *modules, model):
        fully_shard(module, mesh=mesh)
    return model


def full(tensor: Any) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def loss_of(outputs: dict[str, Tensor]) -> Tensor:
    return torch.stack([output.square().mean() for output in outputs.values()]).sum()


def trained(rank: int, made: str, plan: str, how: str) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """Losses of three steps, gradients of the last, and the parameters after it; each process has half of the batch."""
    model = filled(MODELS[made](), plan_of(plan)).train()
    parallel, rows = model, slice(0, 4)
    if how != "one process":
        rows = slice(2 * rank, 2 * rank + 2)
    if "checkpointed" in how:
        model.trunk.set_grad_checkpointing()
    if how == "DDP":
        parallel = DistributedDataParallel(model)
    elif how.startswith("FSDP2"):
        parallel = sharded(model, *(model.heads.values() if "heads" in how else ()))
        assert isinstance(parallel, FSDPModule)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    added = [parameter for _, parameter in dtme.added_parameters(parallel)]
    rest = [parameter for parameter in parallel.parameters() if all(parameter is not own for own in added)]
    assert len(added) + len(rest) == len(names)
    optimiser = torch.optim.AdamW([{"params": rest}, {"params": added, "lr": 1e-2, "weight_decay": 0.0}], lr=1e-3)
    losses, gradients = [], {}
    for _ in range(3):
        optimiser.zero_grad()
        loss = loss_of(parallel(*inputs_of(made, rows)))
        loss.backward()
        value = loss.detach()
        if how != "one process":
            distributed.all_reduce(value)
            value = value / distributed.get_world_size()
        losses.append(value.item())
        gradients = {name: full(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        optimiser.step()
    return losses, gradients, {name: full(parameter) for name, parameter in model.named_parameters()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("how", ["DDP", "FSDP2"])
@pytest.mark.parametrize(("made", "plan"), CASES)
def test_two_processes_train_as_one(made: str, plan: str, how: str, crew: Crews):
    losses, gradients, parameters = trained(0, made, plan, "one process")
    assert len(gradients) == len(parameters)
    for answer in crew(2).run(trained, made, plan, how):
        assert answer[0] == pytest.approx(losses, abs=1e-9)
        assert_same(answer[1], gradients)
        assert_same(answer[2], parameters, 1e-7)


@pytest.mark.parametrize("how", ["FSDP2, checkpointed", "FSDP2, heads as well"])
@pytest.mark.parametrize("plan", ["modulation", "some of each"])
def test_sharded_models_may_checkpoint_and_may_shard_their_heads(plan: str, how: str, crew: Crews):
    losses, gradients, _ = trained(0, "timm", plan, "one process")
    for answer in crew(2).run(trained, "timm", plan, how):
        assert answer[0] == pytest.approx(losses, abs=1e-9)
        assert_same(answer[1], gradients)


def routed(rank: int, how: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rows with tasks of their own, and one task alone."""
    model = filled(MODELS["timm"](), PLANS["some of each"]).eval()
    images = inputs_of("timm", slice(0, 4))[0]
    rows = slice(2 * rank, 2 * rank + 2) if how != "one process" else slice(0, 4)
    tasks = ("scene", "depth", "semseg", "depth")
    parallel = {"DDP": DistributedDataParallel, "FSDP2": sharded}.get(how, copy.copy)(model)
    outputs = []
    with torch.no_grad():
        with dtme.tasks(parallel, per_sample=tasks[rows]):
            outputs.append(parallel(images[rows]))
        with dtme.tasks(parallel, "semseg"):
            outputs.append(parallel(images[rows]))
    return outputs[0], outputs[1]


@pytest.mark.parametrize("how", ["DDP", "FSDP2"])
def test_rows_and_tasks_are_routed_in_each_process(how: str, crew: Crews):
    alone = routed(0, "one process")
    halves = crew(2).run(routed, how)
    for place, whole in enumerate(alone):
        assert_same({task: torch.cat([half[place][task] for half in halves]) for task in VISION}, whole)


def analysed(rank: int, how: str, shares: list[list[int]]) -> Any:
    model = filled(MODELS["timm"](), PLANS["some of each"]) if "applied" in how else MODELS["timm"]().double()
    batches = make_batches(model, (3, 2, 4, 1, 3, 2))
    fresh = copy.deepcopy(model)
    parallel = sharded(model) if how.startswith("FSDP2") else model
    before = [(type(p), p.requires_grad) for p in parallel.parameters()]
    report = dtme.analyze(parallel, task_losses, [batches[number] for number in shares[rank]])
    assert [(type(p), p.requires_grad) for p in parallel.parameters()] == before
    assert all(parameter.grad is None for parameter in parallel.parameters())
    if how.startswith("FSDP2"):  # it goes on training as if nothing had been
        loss_of(parallel(*batches[0]["inputs"])).backward()
        gradients = {name: full(p.grad) for name, p in parallel.named_parameters()}
        loss_of(fresh(*batches[0]["inputs"])).backward()
        assert_same(gradients, {name: p.grad for name, p in fresh.named_parameters()})
    return report


@pytest.mark.parametrize("shares", [[[0, 2, 4], [1, 3, 5]], [[0, 2, 3, 4, 5], [1]]], ids=str)
@pytest.mark.parametrize("how", ["", ", applied"])
def test_a_sharded_model_is_analysed_as_a_whole_one(how: str, shares: list[list[int]], crew: Crews):
    alone = analysed(0, "one process" + how, [list(range(6))])
    for report in crew(2).run(analysed, "FSDP2" + how, shares):
        assert (report.tasks, report.blocks, report.samples) == (alone.tasks, alone.blocks, alone.samples)
        for name in ("range_rate", "null_rate", "range_halfwidth", "null_halfwidth"):
            torch.testing.assert_close(getattr(report, name), getattr(alone, name), rtol=0, atol=1e-12)


def refused(rank: int, present: list[list[str]], share: list[list[int]]) -> str:
    model = MODELS["timm"]()
    batches = make_batches(model, (2, 2), present=present)
    with pytest.raises(ValueError, match="the model is sharded") as raised:
        dtme.analyze(sharded(model), task_losses, [batches[number] for number in share[rank]])
    distributed.barrier()
    return str(raised.value)


def test_what_cannot_be_read_apart_is_refused_in_all_processes(crew: Crews):
    both = [["depth", "scene", "semseg"], ["depth", "semseg"]]
    for message in crew(2).run(refused, both, [[0], [1]]):
        assert (
            "rank 0 and rank 1 have losses for ('depth', 'scene', 'semseg') and ('depth', 'semseg') at step 0"
            in message
        )
    for message in crew(2).run(refused, both, [[0, 1], []]):
        assert "rank 1 of 2 has no batch" in message
        assert "Give every process at least one batch" in message


def saved(rank: int, folder: Path) -> bool:
    model = filled(MODELS["timm"](), PLANS["some of each"])
    expected = dict(model.state_dict())
    shards = sharded(model)
    dtme.save_pretrained(shards, folder / "sharded")
    there = (folder / "sharded" / "model.safetensors").is_file()
    fresh = MODELS["timm"]().double()
    dtme.load_pretrained(fresh, folder / "sharded")
    assert_same(dict(fresh.state_dict()), {name: tensor.detach() for name, tensor in expected.items()}, 0.0)
    assert sharded(fresh)(*inputs_of("timm", slice(0, 2))).keys() == set(VISION)
    return there


def test_a_sharded_model_is_saved_whole_by_one_process(tmp_path: Path, crew: Crews):
    assert crew(2).run(saved, tmp_path) == [True, True]
    whole = filled(MODELS["timm"](), PLANS["some of each"])
    dtme.save_pretrained(whole, tmp_path / "whole")
    whole, shards = (load_file(tmp_path / kind / "model.safetensors") for kind in ("whole", "sharded"))
    assert_same(shards, whole, 0.0)
    told = [json.loads((tmp_path / kind / "config.json").read_text()) for kind in ("whole", "sharded")]
    for config in told:  # digests are of bytes, in which tensors may lie in another order
        assert config.pop("digest")
        assert config["files"].pop("model.safetensors")
    assert told[0] == told[1]


def failing_save(rank: int, folder: Path) -> str:
    shards = sharded(filled(MODELS["timm"](), PLANS["modulation"]))

    def full_disk(*_: Any) -> None:
        raise OSError("No space left on device")

    whole, checkpoint_files.write = checkpoint_files.write, full_disk  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with pytest.raises(RuntimeError) as raised:
            dtme.save_pretrained(shards, folder / "here")
    finally:
        checkpoint_files.write = whole
    return str(raised.value)


def test_a_failed_save_is_known_to_all(tmp_path: Path, crew: Crews):
    assert crew(2).run(failing_save, tmp_path) == ["rank 0 of 2: OSError: No space left on device"] * 2


def removed(rank: int) -> None:
    model = filled(MODELS["timm"](), PLANS["some of each"]).eval()
    shards, images = sharded(model), inputs_of("timm", slice(0, 2))
    shards(*images)
    dtme.remove(shards)
    plain = MODELS["timm"]().double().eval()
    assert_same(shards(*images), plain(*images), 0.0)
    assert shards.state_dict().keys() == plain.state_dict().keys()


def test_inserts_are_taken_out_of_a_sharded_model(crew: Crews):
    crew(2).run(removed)


def too_late(rank: int, how: str) -> str:
    model = tiny_vit(VISION)
    if how == "DDP":
        model = DistributedDataParallel(model)
    else:
        fully_shard(model.blocks[2] if how == "a block" else model, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(ValueError, match="Apply the plan first, then distribute the model") as raised:
        dtme.apply(model, dtme.Plan(VISION, {"blocks.1": VISION}))
    return str(raised.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("DDP", "apply: the model is wrapped in DistributedDataParallel already"),
        ("FSDP2", "apply: the model is sharded (FSDP) already"),
        ("a block", "apply: module 'blocks.2' of the model is sharded (FSDP) already"),
    ],
)
def test_a_plan_comes_before_the_wrapper(how: str, message: str, crew: Crews):
    for raised in crew(2).run(too_late, how):
        assert raised.startswith(message)
