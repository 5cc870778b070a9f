"""What is shared and what is a task's own, by which route gradients come, and that every balancing can be resumed."""

import copy
import subprocess
import sys

import pytest
import torch
from models import make_batches, task_losses, timm_multitask
from points import Point, matrix, update_of
from torch import Tensor, nn

import dtme
from dtme.trunk.blocks import find_blocks
from experiments.baselines import (
    DWA,
    FAMO,
    UW,
    Balancing,
    ConflictCount,
    aligned_mtl,
    cagrad,
    fairgrad,
    graddrop,
    imtl_g,
    mgda,
    nash_mtl,
    pcgrad,
    upgrad,
)

TASKS = ("depth", "semseg", "scene")
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
GRADIENTS = (pcgrad, cagrad, mgda, imtl_g, nash_mtl, aligned_mtl, graddrop, fairgrad, upgrad)
EVERY = {
    **{make.__name__: lambda model, tasks, make=make: make() for make in GRADIENTS},
    "UW": lambda model, tasks: UW(tasks),
    "DWA": lambda model, tasks: DWA(tasks, steps_per_epoch=2),
    "FAMO": lambda model, tasks: FAMO(tasks),
    "Recon": lambda model, tasks: ConflictCount(model),
}


def make_model(depth: int = 2) -> nn.Module:
    return timm_multitask(TASKS, seed=0, depth=depth).double()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gradients_alone(model: nn.Module, batch: dict) -> dict[str, dict[str, Tensor]]:
    """Per task the gradients of its own loss alone, each of a forward pass of its own."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = {}
    for task in TASKS:
        rows = torch.autograd.grad(task_losses(model, batch)[task], list(named.values()), allow_unused=True)
        found[task] = {name: row for name, row in zip(named, rows, strict=True) if row is not None}
    return found


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("make", [pcgrad, nash_mtl], ids=lambda make: make.__name__)
def test_shared_parameters_get_the_weighted_sum_and_others_their_own_gradient(make, applied: bool):
    model = make_model(depth=3)
    (batch,) = make_batches(model, (4,))
    if applied:
        names = list(find_blocks(model))
        some = {names[1]: TASKS, names[2]: ("semseg", "scene")}
        dtme.apply(model, dtme.Plan(TASKS, modulate=some, expand={names[2]: TASKS}, adapt={names[1]: TASKS}))
        with torch.no_grad():
            for _, parameter in dtme.added_parameters(model):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    alone = gradients_alone(model, batch)
    weights = make()(model, task_losses(model, batch))
    added = {id(p) for _, p in dtme.added_parameters(model)} if applied else set()
    found = gradients(model)
    assert set(found) == set().union(*alone.values())
    assert applied == bool(added)
    for name, parameter in model.named_parameters():
        own = id(parameter) in added or name.startswith("heads.")
        terms = [g if own else weights[task] * g for task in TASKS if (g := alone[task].get(name)) is not None]
        if terms:
            torch.testing.assert_close(found[name], torch.stack(terms).sum(0), **CLOSE)
    assert min(w.item() for w in weights.values()) > 0
    assert max(abs(w.item() - 1) for w in weights.values()) > 1e-3  # something was balanced


def test_the_products_are_those_of_the_shared_parameters_alone():
    model = make_model()
    (batch,) = make_batches(model, (4,))
    alone = gradients_alone(model, batch)
    rows = torch.stack([torch.cat([alone[t][n].flatten() for n in alone[t] if "trunk" in n]) for t in TASKS])
    products = rows @ rows.T
    weights = torch.stack(list(nash_mtl()(model, task_losses(model, batch)).values()))
    torch.testing.assert_close(products @ weights * weights, torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [pcgrad, mgda, aligned_mtl], ids=lambda make: make.__name__)
def test_by_parameters_and_by_features_as_in_torchjd_are_one(make):
    from torchjd.aggregation import MGDA, AlignedMTL, PCGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    theirs_by = {pcgrad: PCGrad, mgda: MGDA, aligned_mtl: AlignedMTL}
    tasks = TASKS[:2] if make is pcgrad else TASKS  # of two tasks PCGrad's order does not matter
    ours = timm_multitask(tasks, seed=0, depth=2).double()
    theirs = copy.deepcopy(ours)
    (batch,) = make_batches(ours, (4,))
    make()(ours, task_losses(ours, batch))
    features: list[Tensor] = []
    theirs.trunk.norm.register_forward_hook(lambda module, args, output: features.append(output))
    losses = task_losses(theirs, batch)
    used = [p for p in theirs.trunk.parameters() if p.requires_grad]
    mtl_backward(list(losses.values()), features=features, parallel_chunk_size=1, shared_params=used)
    jac_to_grad(used, theirs_by[make]())
    for name, gradient in gradients(theirs).items():
        torch.testing.assert_close(gradients(ours)[name], gradient, rtol=1e-8, atol=1e-12)


def test_gradients_are_added_to_those_there_are():
    point, jacobian = Point(3), matrix([1.0, 2.0, 0.5], [1.0, -1.0, 0.5])
    point.rest.grad = torch.tensor([10.0, 20.0], dtype=torch.float64)
    pcgrad()(point, point(jacobian))
    torch.testing.assert_close(point.rest.grad, update_of(pcgrad(), jacobian)[1:] + torch.tensor([10.0, 20.0]))


def test_frozen_parameters_stay_without_a_gradient():
    model = make_model()
    (batch,) = make_batches(model, (2,))
    model.trunk.blocks[0].requires_grad_(False)
    upgrad()(model, task_losses(model, batch))
    assert all(p.grad is None for p in model.trunk.blocks[0].parameters())
    assert model.trunk.blocks[1].mlp.fc1.weight.grad is not None


def test_one_task_is_plain_training():
    model = timm_multitask(("depth",), seed=0, depth=2).double()
    (batch,) = make_batches(model, (2,))
    plain = copy.deepcopy(model)
    task_losses(plain, batch)["depth"].backward()
    assert pcgrad()(model, task_losses(model, batch)) == {}
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradients(model)[name], gradient)


def test_a_gradient_that_is_not_finite_is_named():
    point = Point(2)
    losses = {"depth": point.first.sum(), "normals": (point.rest * 0).sqrt().sum()}  # its slope at 0 is infinite
    with pytest.raises(FloatingPointError, match=r"task 'normals' by parameter 'rest' is not finite, its loss is 0.0"):
        pcgrad()(point, losses)
    with pytest.raises(ValueError, match=r"losses\['depth'\] is a tensor of shape \(2,\)"):
        pcgrad()(point, {"depth": torch.cat([point.first, point.rest])})
    with pytest.raises(ValueError, match=r"losses\['depth'\] is a tensor without a graph"):
        pcgrad()(point, {"depth": torch.zeros(())})
    with pytest.raises(ValueError, match="losses is empty"):
        pcgrad()(point, {})


def train(model: nn.Module, balancing: Balancing, made: torch.optim.Optimizer, batches: list) -> list[dict]:
    logs = []
    for batch in batches:
        logs.append(balancing(model, task_losses(model, batch)))
        made.step()
        balancing.after_step(lambda batch=batch: task_losses(model, batch))
        made.zero_grad()
    return logs


def fresh(name: str) -> tuple[nn.Module, Balancing, torch.optim.Optimizer]:
    model = timm_multitask(TASKS, seed=0, depth=1)
    balancing = EVERY[name](model, TASKS)
    return model, balancing, torch.optim.AdamW([*model.parameters(), *balancing.parameters()], lr=1e-2)


@pytest.mark.parametrize("name", EVERY)
def test_a_run_that_is_resumed_goes_on_exactly_and_leaves_torchs_generator_alone(name: str, tmp_path):
    batches = make_batches(timm_multitask(TASKS, depth=1), (2,) * 7)
    whole, first = fresh(name), fresh(name)
    state = torch.get_rng_state()
    logs = train(*whole, batches)
    assert torch.equal(torch.get_rng_state(), state)
    train(*first, batches[:5])
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    torch.rand(3)  # whatever else is drawn in between
    second = fresh(name)
    for part, saved in zip(second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(saved)
    again = train(*second, batches[5:])
    assert again == logs[5:]
    for one, other in zip(whole[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_seeds_differ_in_what_they_draw():
    jacobian = torch.randn(3, 50, dtype=torch.float64)
    assert torch.equal(update_of(graddrop(seed=1), jacobian), update_of(graddrop(seed=1), jacobian))
    assert not torch.equal(update_of(graddrop(seed=1), jacobian), update_of(graddrop(seed=2), jacobian))
    one = graddrop(seed=1)
    assert not torch.equal(update_of(one, jacobian), update_of(one, jacobian))  # nor are two steps the same


def test_the_module_needs_no_extra_until_a_method_is_asked_for():
    code = """
import sys
for name in ("torchjd", "peft", "cvxpy", "quadprog", "qpsolvers", "scipy", "numpy"):
    sys.modules[name] = None
import torch
from experiments.baselines import *
model = torch.nn.Linear(2, 1)
nash_mtl()(model, {"a": model(torch.ones(2)).sum(), "b": model(-torch.ones(2)).sum()})
try:
    pcgrad()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torchjd" in done.stdout
