"""A group that is reserved from the start, and filled in training, learns as one that was full from the start."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm.optim
import timm.scheduler
import torch
import transformers
from models import make_batches, task_losses, timm_multitask
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

import dtme

TASKS = ("depth", "semseg", "scene")
BLOCK = "trunk.blocks.{}".format
PLAN = dtme.Plan(TASKS, {BLOCK(2): TASKS}, {BLOCK(3): ("semseg",)}, {BLOCK(3): ("depth", "scene")}, rank=2)
STEPS, AT = 12, 5
Scheduler = Callable[[Any], Any]

TORCH: dict[str, Scheduler] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "LambdaLR, one each": lambda o: lr_scheduler.LambdaLR(o, [lambda step: 1 / (1 + step), lambda step: 0.9**step]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [4, 8]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 8),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [1e-2, 3e-2], total_steps=STEPS + 1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=3, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, min_lr=[1e-6, 1e-5]),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 8)], [4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=[1e-4, 3e-4], anneal_epochs=6),
}
HUGGING_FACE: dict[str, Scheduler] = {
    f"transformers {kind.value}": lambda o, kind=kind: transformers.get_scheduler(
        kind, o, num_warmup_steps=3, num_training_steps=STEPS, scheduler_specific_kwargs=options_of(kind.value)
    )
    for kind in transformers.SchedulerType
}
TIMM: dict[str, Scheduler] = {
    f"timm {name}": lambda o, name=name: timm.scheduler.create_scheduler_v2(
        o, name, num_epochs=STEPS, warmup_epochs=2, decay_epochs=3, decay_milestones=[4, 8], patience_epochs=1
    )[0]
    for name in ("cosine", "tanh", "step", "multistep", "plateau", "poly", "wsd", "rsqrt")
}


def options_of(kind: str) -> dict[str, Any]:
    known = {
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
        "warmup_stable_decay": {"num_decay_steps": 4},
        "reduce_lr_on_plateau": {"patience": 1},
    }
    return known.get(kind, {})


class Training:
    """A model, its optimizer and schedule, a batch that is always the same."""

    def __init__(
        self,
        make: Callable[[list[dict[str, Any]]], Any],
        schedule: Scheduler | None = None,
        *,
        plan: dtme.Plan | None = None,
        lr: float = 1e-2,
    ):
        self.model: Any = timm_multitask(TASKS)
        if plan is not None:
            apply_alike(self.model, plan)
        self.optimizer = make(dtme.parameter_groups(self.model, lr=lr, weight_decay=0.01))
        self.schedule = None if schedule is None else schedule(self.optimizer)
        self.batch = make_batches(self.model, [2])[0]
        self.rates: list[list[float]] = []
        self.losses: list[float] = []

    def step(self, *tasks: str) -> None:
        losses = task_losses(self.model, self.batch)
        loss = torch.stack([losses[task] for task in tasks or TASKS]).sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(float(loss.detach()))
        if self.schedule is not None:
            step_schedule(self.schedule, len(self.losses))
        self.rates.append([group["lr"] for group in self.optimizer.param_groups])

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def step_schedule(schedule: Any, number: int, metric: float = 1.0) -> None:
    if isinstance(schedule, timm.scheduler.scheduler.Scheduler):
        schedule.step(number, metric)
    elif "metrics" in inspect.signature(schedule.step).parameters:
        schedule.step(metric)
    else:
        schedule.step()


def apply_alike(model: Any, plan: dtme.Plan) -> None:
    """The same inserts whenever it is called."""
    torch.manual_seed(7)
    dtme.apply(model, plan)


def expand_alike(training: Training, plan: dtme.Plan) -> None:
    torch.manual_seed(7)
    dtme.expand(training.model, training.optimizer, plan)


def run(
    make: Callable[[list[dict[str, Any]]], Any], schedule: Scheduler | None, *, lr: float = 1e-2
) -> list[list[float]]:
    """Expand in the midst of training, beside an optimizer that has had the parameters from the start, without gradients.

    Returns the learning rates of every step.
    """
    grown = Training(make, schedule, lr=lr)
    model = grown.model
    waiting = timm_multitask(TASKS)
    apply_alike(waiting, PLAN)
    full = Training(make, schedule, lr=lr)
    late = dict(dtme.added_parameters(waiting))
    full.optimizer.param_groups[-1]["params"].extend(late.values())
    for step in range(STEPS):
        if step == AT:
            expand_alike(grown, PLAN)
            apply_alike(full.model, PLAN)
            for name, parameter in late.items():
                holder, _, own = name.rpartition(".")
                full.model.get_submodule(holder)._parameters[own] = parameter
        grown.step()
        full.step()
    assert grown.rates == full.rates
    assert grown.losses == full.losses
    one, other = grown.weights(), full.weights()
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    for _, parameter in dtme.added_parameters(model):
        assert parameter.grad is None
        assert grown.optimizer.state[parameter] or not any(grown.optimizer.state.values())
    return grown.rates


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning")
@pytest.mark.parametrize("schedule", [*TORCH, *HUGGING_FACE, *TIMM])
def test_learning_rates_and_weights_are_those_of_parameters_there_from_the_start(schedule: str):
    rates = run(torch.optim.AdamW, {**TORCH, **HUGGING_FACE, **TIMM}[schedule])
    assert len(set(map(tuple, rates))) > 1 or schedule == "transformers constant"


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning")
def test_the_schedulers_are_all_there_are():
    """A scheduler that torch, transformers or timm adds is tried here, too."""
    known = {name.split(",")[0] for name in TORCH}
    bases = {"LRScheduler", "_LRScheduler"}
    assert known - {"SWALR"} == {
        name
        for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler) and name not in bases
    }
    optimizer = torch.optim.AdamW(dtme.parameter_groups(nn.Linear(2, 2), lr=1e-3))
    assert {type(make(optimizer)) for make in TIMM.values()} == set(timm.scheduler.scheduler.Scheduler.__subclasses__())


OPTIMIZERS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")  # one group; sparse gradients; matrices alone
}


@pytest.mark.parametrize("name", [*OPTIMIZERS, "AdamW fused", "AdamW foreach", "SGD fused", "SGD momentum", "amsgrad"])
def test_every_optimizer_of_torch_takes_an_empty_group(name: str):
    options = {
        "AdamW fused": {"fused": True},
        "AdamW foreach": {"foreach": True},
        "SGD fused": {"fused": True, "momentum": 0.9},
        "SGD momentum": {"momentum": 0.9, "nesterov": True},
        "amsgrad": {"amsgrad": True},
    }.get(name, {})
    kind = OPTIMIZERS["AdamW" if name == "amsgrad" else name.split()[0]]
    run(lambda groups: kind(groups, **options), None, lr=1e-3)


@pytest.mark.parametrize("name", ["lamb", "lion", "adopt", "nadamw", "lookahead_adamw"])
def test_optimizers_of_timm_take_one(name: str):
    run(lambda groups: timm.optim.create_optimizer_v2(groups, name, lr=1e-3), None, lr=1e-3)


def test_groups_of_ones_own_keep_what_they_say_and_lose_the_inserts():
    model = timm_multitask(TASKS)
    for plan in (None, PLAN):
        if plan is not None:
            dtme.apply(model, plan)
        layered = timm.optim.param_groups_layer_decay(model, 0.05, layer_decay=0.5)
        groups = dtme.parameter_groups(model, lr=1e-3, insert_lr=5e-3, groups=layered)
        added = [parameter for _, parameter in dtme.added_parameters(model)]
        assert [id(p) for p in groups[-1]["params"]] == [id(p) for p in added]
        assert (groups[-1]["lr"], groups[-1]["weight_decay"]) == (5e-3, 0.0)
        own = [id(p) for group in groups[:-1] for p in group["params"]]
        assert sorted(own) == sorted(id(p) for p in model.parameters() if not any(p is one for one in added))
        assert {group["weight_decay"] for group in groups[:-1]} == {0.05, 0.0}
        assert all("lr_scale" in group and group["lr"] == 1e-3 for group in groups[:-1])


def test_frozen_parameters_are_left_out():
    model = timm_multitask(TASKS)
    model.trunk.requires_grad_(False)
    groups = dtme.parameter_groups(model, lr=1e-3)
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in model.heads.parameters()]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model is trained"):
        dtme.parameter_groups(model, lr=1e-3)


def test_named_parameters_stay_named():
    model = timm_multitask(TASKS)
    groups = dtme.parameter_groups(model, lr=1e-3, groups=[{"params": model.named_parameters()}])
    optimizer = torch.optim.AdamW(groups)
    dtme.expand(model, optimizer, PLAN)
    assert optimizer.param_groups[-1]["param_names"] == [name for name, _ in dtme.added_parameters(model)]
    dtme.remove(model, optimizer)
    assert optimizer.param_groups[-1]["param_names"] == optimizer.param_groups[-1]["params"] == []
    again = torch.optim.AdamW(
        dtme.parameter_groups(dtme.apply(model, PLAN), lr=1e-3, groups=[{"params": model.named_parameters()}])
    )
    assert again.param_groups[-1]["param_names"] == [name for name, _ in dtme.added_parameters(model)]


@pytest.mark.parametrize("rates", [{"lr": 0.0}, {"lr": 1e-3, "insert_lr": -1.0}])
def test_a_learning_rate_is_positive(rates: dict[str, float]):
    with pytest.raises(ValueError, match=r"parameter_groups\(\w+=.*\): give a positive learning rate"):
        dtme.parameter_groups(nn.Linear(2, 2), **rates)


def test_an_optimizer_without_the_group_is_refused_before_anything_is_changed():
    model = timm_multitask(TASKS)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"expand: this AdamW has no group .*dtme\.parameter_groups\(model, lr="):
        dtme.expand(model, optimizer, PLAN)
    assert dtme.plan_of(model) is None


def test_deepspeed_is_told_to_plan_first():
    model = timm_multitask(TASKS)
    inner = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))
    engine = type(
        "DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero", "param_groups": inner.param_groups}
    )
    for optimizer in (engine(), SimpleNamespace(optimizer=engine(), param_groups=inner.param_groups)):
        with pytest.raises(ValueError, match=r"expand: DeepSpeedZeroOptimizer .* Plan first: dtme\.apply"):
            dtme.expand(model, optimizer, PLAN)
    assert dtme.plan_of(model) is None


def test_remove_takes_parameters_and_their_state_out_and_leaves_the_group():
    training = Training(torch.optim.AdamW, TORCH["OneCycleLR"])
    expand_alike(training, PLAN)
    training.step()
    before = set(map(id, training.optimizer.state))
    added = {id(parameter) for _, parameter in dtme.added_parameters(training.model)}
    assert added < before
    dtme.remove(training.model, training.optimizer)
    assert set(map(id, training.optimizer.state)) == before - added
    assert [len(group["params"]) for group in training.optimizer.param_groups][1:] == [0]
    training.step()  # the schedule goes on
    assert dtme.plan_of(training.model) is None


OTHER = dtme.Plan(
    TASKS,
    {BLOCK(2): TASKS, BLOCK(1): ("scene",)},
    {BLOCK(3): ("semseg", "scene")},
    {BLOCK(3): ("depth", "scene")},
    rank=3,
)


def test_another_plan_in_place_keeps_what_both_have():
    training = Training(torch.optim.AdamW, TORCH["CosineAnnealingLR"])
    expand_alike(training, PLAN)
    for _ in range(3):
        training.step()
    model, optimizer = training.model, training.optimizer
    before = dict(dtme.added_parameters(model))
    state = {name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in before.items()}
    was = {name: parameter.detach().clone() for name, parameter in before.items()}
    dtme.expand(model, optimizer, OTHER)
    after = dict(dtme.added_parameters(model))
    assert dtme.plan_of(model) == OTHER
    for own in ("scale", "shift"):  # the same tasks: the same parameter, with its state
        name = f"{BLOCK(2)}.dtme.{own}"
        assert after[name] is before[name]
        assert all(torch.equal(optimizer.state[after[name]][key], value) for key, value in state[name].items())
    tokens = f"{BLOCK(3)}.dtme.tokens"  # one task more: that of the other stays
    assert torch.equal(after[tokens][0], was[tokens][0])
    assert after[tokens].shape[0] == 2
    assert after[tokens] not in optimizer.state
    layers = [name for name in after if ".low_rank." in name]
    assert layers
    assert all(after[name].shape != was[name].shape for name in layers)  # of another rank: new
    assert optimizer.param_groups[-1]["params"] == list(after.values())
    kept = {id(parameter) for parameter in [*model.parameters()]}
    assert set(map(id, optimizer.state)) <= kept
    training.step()


def test_copies_stay_where_their_task_does():
    model: Any = timm_multitask(TASKS)
    optimizer = torch.optim.AdamW(dtme.parameter_groups(model, lr=1e-3))
    dtme.expand(model, optimizer, dtme.Plan(TASKS, copies={BLOCK(3): ("semseg",)}))
    own = dict(dtme.added_parameters(model))
    dtme.expand(model, optimizer, dtme.Plan(TASKS, copies={BLOCK(3): ("depth", "semseg")}))
    after = dict(dtme.added_parameters(model))
    assert all(after[name.replace("copies.0", "copies.1")] is parameter for name, parameter in own.items())


def test_a_plan_that_does_not_fit_leaves_the_one_that_is_there():
    training = Training(torch.optim.AdamW)
    expand_alike(training, PLAN)
    training.step()
    before, weights = dict(dtme.added_parameters(training.model)), training.weights()
    with pytest.raises(ValueError, match=r"no block 'trunk\.blocks\.9'"):
        dtme.expand(training.model, training.optimizer, dtme.Plan(TASKS, {BLOCK(9): TASKS}))
    assert dtme.plan_of(training.model) == PLAN
    assert all(parameter is before[name] for name, parameter in dtme.added_parameters(training.model))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in training.weights().items())
    training.step()


def test_the_same_plan_again_changes_nothing():
    training = Training(torch.optim.AdamW)
    expand_alike(training, PLAN)
    training.step()
    before, weights = dict(dtme.added_parameters(training.model)), training.weights()
    dtme.expand(training.model, training.optimizer, PLAN)
    assert all(parameter is before[name] for name, parameter in dtme.added_parameters(training.model))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in training.weights().items())


def test_the_state_of_an_expanded_optimizer_fits_one_made_after_apply():
    training = Training(torch.optim.AdamW, TORCH["OneCycleLR"])
    training.step()
    expand_alike(training, PLAN)
    training.step()
    saved = copy.deepcopy((training.weights(), training.optimizer.state_dict(), training.schedule.state_dict()))
    training.step()
    again = Training(torch.optim.AdamW, TORCH["OneCycleLR"], plan=PLAN)
    again.model.load_state_dict(saved[0])
    again.optimizer.load_state_dict(saved[1])
    again.schedule.load_state_dict(saved[2])
    again.step()
    assert again.losses == training.losses[-1:]
    assert again.rates == training.rates[-1:]
    assert all(torch.equal(tensor, again.weights()[name]) for name, tensor in training.weights().items())
