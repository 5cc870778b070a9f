"""Copies of blocks for some tasks: the branched model of the baselines, in streams; parts of blocks; and what is refused."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from typing import Any

import pytest
import torch
import transformers as hf
from models import WholeFeatures, displaced
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dtme
from experiments.baselines import branch

TASKS = ("depth", "edges", "semseg")
BLOCKS = [f"trunk.blocks.{place}" for place in range(4)]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


def made(plan: dtme.Plan) -> Any:
    """The model with the plan, every added parameter away from where it begins."""
    return displaced(WholeFeatures(TASKS), plan, 0.2)


def loss_of(outputs: dict[str, Tensor]) -> Tensor:
    return torch.stack([(outputs[task] - place).square().mean() for place, task in enumerate(TASKS)]).sum()


def test_copies_for_all_but_one_are_the_branched_model_of_the_baselines(images: Tensor):
    model = made(dtme.Plan(TASKS, copies=dict.fromkeys(BLOCKS[2:], TASKS[1:])))
    theirs = branch(WholeFeatures(TASKS), TASKS, 2)
    own = dict(model.named_parameters())
    pairs = {}
    for name, parameter in theirs.named_parameters():
        if name.startswith("own."):
            _, task, place = name.split(".", 2)
            block = next(block for block in BLOCKS if place.startswith(block.replace(".", "-") + "-"))
            rest = place.removeprefix(block.replace(".", "-") + "-").replace("-", ".")
            pairs[name] = f"{block}.dtme.copies.{TASKS[1:].index(task)}.{rest}"
        else:
            pairs[name] = name.removeprefix("model.")
        with torch.no_grad():
            parameter.copy_(own[pairs[name]])
    assert set(pairs.values()) == own.keys()
    both = [each(images) for each in (model, theirs)]
    for outputs in both:
        loss_of(outputs).backward()
    for task in TASKS:
        torch.testing.assert_close(both[0][task], both[1][task], rtol=1e-10, atol=1e-10)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(own[pairs[name]].grad, parameter.grad, rtol=1e-9, atol=1e-10)


def test_a_part_of_a_block_can_be_copied(images: Tensor):
    model = made(dtme.Plan(TASKS, {BLOCKS[1]: TASKS[:1]}, copies={f"{BLOCKS[3]}.mlp": TASKS[1:]}))
    outputs = model(images)
    with dtme.tasks(model, per_sample=[2, 1, 0]):
        mixed = model(images)
    for place, task in enumerate(TASKS):
        alone = WholeFeatures(TASKS)
        if place:
            own = model.get_submodule(f"{BLOCKS[3]}.mlp").dtme.copies[place - 1]
            alone.get_submodule(f"{BLOCKS[3]}.mlp").load_state_dict(own.state_dict())
        dtme.apply(alone, dtme.Plan(TASKS, {BLOCKS[1]: TASKS[:1]}))
        values = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in dtme.added_parameters(alone):
                parameter.copy_(values[name])
        expected = alone(images)[task]
        torch.testing.assert_close(outputs[task], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(mixed[task][2 - place], expected[2 - place], rtol=1e-10, atol=1e-10)


def test_one_task_alone_runs_one_block_and_not_two(images: Tensor):
    model = made(dtme.Plan(TASKS, copies={BLOCKS[3]: TASKS[1:]}))
    block = model.get_submodule(BLOCKS[3])
    ran: list[nn.Module] = []
    for module in (block.mlp, *(own.mlp for own in block.dtme.copies)):
        module.register_forward_hook(lambda module, args, output: ran.append(module))
    for task, module in zip(TASKS, (block.mlp, *(own.mlp for own in block.dtme.copies)), strict=True):
        ran.clear()
        with dtme.tasks(model, task):
            model(images)
        assert ran == [module]


def test_tasks_without_a_copy_share_the_stream_of_the_block(images: Tensor):
    model = made(dtme.Plan(TASKS, copies={BLOCKS[2]: TASKS[2:]}))
    rows = []
    block = model.get_submodule(BLOCKS[2])
    for module in (block.mlp, block.dtme.copies[0].mlp):
        module.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    model(images)
    assert rows == [3, 3]


def test_a_frozen_model_leaves_its_copies_to_be_trained(images: Tensor):
    model = WholeFeatures(TASKS).requires_grad_(False)
    dtme.apply(model, dtme.Plan(TASKS, copies={BLOCKS[3]: TASKS[1:]}))
    loss_of(model(images)).backward()
    assert all(parameter.grad is not None for _, parameter in dtme.added_parameters(model))


def test_a_task_that_keeps_the_block_trains_it_and_the_others_do_not(images: Tensor):
    model = made(dtme.Plan(TASKS, copies={BLOCKS[3]: TASKS[1:]}))
    outputs = model(images)
    (outputs["edges"].square().sum() + outputs["semseg"].square().sum()).backward()
    block = model.get_submodule(BLOCKS[3])
    assert all(p.grad is None or not p.grad.any() for name, p in block.named_parameters() if "dtme" not in name)
    assert all(bool(p.grad.any()) for p in block.dtme.copies.parameters())


def test_activations_are_recomputed_to_the_same_gradients(images: Tensor):
    plan = dtme.Plan(TASKS, {BLOCKS[3]: TASKS}, copies={BLOCKS[3]: TASKS[1:]})
    models = [made(plan), made(plan)]
    models[1].trunk.set_grad_checkpointing()
    for model in models:
        loss_of(model(images)).backward()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)


def test_a_forward_alone_is_recomputed_too(images: Tensor):
    class Recomputing(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block
            self.attn = block.attn  # so that it is found as a block

        def forward(self, tokens: Tensor) -> Tensor:
            return checkpoint(self.block, tokens, use_reentrant=False)

    plan = dtme.Plan(TASKS, copies={BLOCKS[3]: TASKS[1:]})
    plain, wrapped = WholeFeatures(TASKS), WholeFeatures(TASKS)
    wrapped.trunk.blocks[3] = Recomputing(wrapped.trunk.blocks[3])
    for model in (plain, wrapped):
        dtme.apply(model, plan)
        loss_of(model(images)).backward()
    torch.testing.assert_close(
        wrapped.trunk.blocks[2].mlp.fc1.weight.grad, plain.trunk.blocks[2].mlp.fc1.weight.grad, rtol=1e-12, atol=1e-14
    )


def count(block: Any, tokens: Tensor) -> Tensor:
    """A forward that notes the rows of every run on the object that runs."""
    block.runs = [*getattr(block, "runs", []), len(tokens)]
    return type(block).forward(block, tokens)


def test_a_forward_that_the_block_had_is_used_and_given_back(images: Tensor):
    model = WholeFeatures(TASKS)
    block = model.get_submodule(BLOCKS[3])
    counting = functools.partial(count, block)
    block.forward = counting
    expected = {task: output.detach() for task, output in model(images).items()}
    dtme.apply(model, dtme.Plan(TASKS, copies={BLOCKS[3]: TASKS[1:]}))
    for task, output in model(images).items():
        torch.testing.assert_close(output, expected[task], rtol=1e-12, atol=1e-12)
    assert [block.runs[-1], *(own.runs[-1] for own in block.dtme.copies)] == [3, 3, 3]
    dtme.remove(model)
    assert block.forward is counting
    block.forward = lambda tokens: tokens
    with pytest.raises(ValueError, match=r"'trunk.blocks.3' has a forward of its own.*with the weights of the block"):
        dtme.apply(model, dtme.Plan(TASKS, copies={BLOCKS[3]: TASKS[1:]}))


def test_a_copy_without_a_gradient_is_named(images: Tensor):
    model = WholeFeatures(TASKS).train()
    dtme.apply(model, dtme.Plan(TASKS, copies={BLOCKS[1]: ("edges",), BLOCKS[3]: ("semseg",)}))
    outputs = model(images)
    with pytest.warns(UserWarning, match="Task 'semseg': none of its inserts"):
        (outputs["edges"].sum() + 0 * outputs["semseg"].sum() + outputs["depth"].sum()).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(made(dtme.Plan(TASKS, copies={BLOCKS[1]: ("edges",)})).train()(images)).backward()


def test_a_cache_of_keys_and_values_is_refused():
    class Words(nn.Module):
        def __init__(self, use_cache: bool) -> None:
            super().__init__()
            config = hf.LlamaConfig(
                vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, use_cache=use_cache,
            )  # fmt: skip
            self.trunk: Any = hf.LlamaModel(config)
            self.heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in TASKS})

        def forward(self, words: Tensor) -> dict[str, Tensor]:
            tokens = self.trunk(words).last_hidden_state
            return {task: head(tokens) for task, head in self.heads.items()}

    plan = dtme.Plan(TASKS, copies={"trunk.layers.1": TASKS[1:]})
    words = torch.tensor([[4, 5, 6, 7]])
    assert dtme.apply(Words(use_cache=False), plan)(words).keys() == set(TASKS)
    with pytest.raises(ValueError, match=r"copies: block 'trunk.layers.1' keeps keys and values.*use_cache=False"):
        dtme.apply(Words(use_cache=True), plan)(words)


def test_copies_are_no_blocks_of_the_trunk(images: Tensor):
    from dtme.trunk.blocks import find_blocks

    model = made(dtme.Plan(TASKS, copies={BLOCKS[3]: TASKS[1:]}))
    assert list(find_blocks(model)) == BLOCKS
    report = dtme.analyze(model, lambda model, batch: {t: o.mean() for t, o in model(batch).items()}, [images])
    assert report.blocks == tuple(BLOCKS)


@pytest.mark.parametrize("field", ["expand", "adapt"])
def test_what_copies_would_not_have_is_refused(field: str):
    with pytest.raises(ValueError, match=rf"copies\['b.1'\]: {field} has the block as well.*Give it copies or those"):
        dtme.Plan(TASKS, **{field: {"b.1": TASKS}}, copies={"b.1": TASKS})
    with pytest.raises(ValueError, match=r"copies\['b.1'\]: 'b.1.mlp' in it has inserts"):
        dtme.Plan(TASKS, **{field: {"b.1.mlp": TASKS}}, copies={"b.1": TASKS})
    with pytest.raises(ValueError, match=r"copies\['b.1'\]='depth': give a sequence"):
        dtme.Plan(TASKS, copies={"b.1": "depth"})


def test_a_plan_with_copies_is_plain_data():
    plan = dtme.Plan(TASKS, copies={"b.1": ("semseg", "edges")})
    assert dtme.Plan.from_json(plan.to_json()) == plan
    assert plan.copies == {"b.1": ("edges", "semseg")}
    assert plan.blocks == ("b.1",)
    with pytest.raises(ValueError, match="low-rank updates and copies are counted"):
        plan.parameters(16)
    before = dtme.Plan(TASKS, {"b.1": TASKS}).to_json()  # as files were written before copies were known
    assert "copies" not in before
    assert dtme.Plan.from_json(before).copies == {}


def test_a_copied_model_and_a_pickled_one_run_through_copies_of_their_own(images: Tensor):
    model = made(dtme.Plan(TASKS, copies={BLOCKS[3]: TASKS[1:]}))
    expected = model(images)
    twins = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)))  # noqa: S301 (made here)
    with torch.no_grad():
        for parameter in model.get_submodule(BLOCKS[3]).parameters():
            parameter.zero_()
    for twin in twins:
        for task, output in twin(images).items():
            assert torch.equal(output, expected[task])
        assert vars(twin.get_submodule(BLOCKS[3]))["forward"].block is twin.get_submodule(BLOCKS[3])
