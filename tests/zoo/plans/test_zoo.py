"""One suite of properties over the whole zoo: other people's trunks, torch's encoder, and trunks written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import BY_HAND
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dtme
from dtme.inserts.expandable import fixed_positions
from dtme.measure.capture import capture
from dtme.trunk.blocks import find_blocks
from zoo import (
    ADAPTABLE,
    CLOSE,
    EXPANDABLE,
    NOT_ADAPTABLE,
    NOT_EXPANDABLE,
    TRANSFORMERS,
    ZOO,
    Inputs,
    Outputs,
    adaptation,
    assert_same,
    everything,
    expansion,
    filled,
    modulation,
)

KINDS = [
    (modulation, list(ZOO), pytest.mark.cell("modulate")),
    (expansion, EXPANDABLE, pytest.mark.cell("expand")),
    (adaptation, ADAPTABLE, pytest.mark.cell("adapt")),
    (everything, list(ZOO), ()),
]
PLANNED = [pytest.param(name, plan_of, marks=marks) for plan_of, names, marks in KINDS for name in names]
CHANGED_BY_HAND = [
    pytest.param(name, plan_of, marks=marks)
    for plan_of, names, marks in KINDS
    for name in names
    if plan_of in BY_HAND and not (plan_of is expansion and name in TRANSFORMERS)  # theirs are in test_transformers_zoo
]


def readable(value: Any) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("name", ZOO)
def test_blocks_are_found_in_the_order_in_which_they_run(name: str):
    model, ran = ZOO[name].make(), []
    for block, module in find_blocks(model).items():
        module.register_forward_pre_hook(lambda *_, block=block: ran.append(block))
    model(**ZOO[name].inputs())
    assert list(find_blocks(model)) == ran


@pytest.mark.cell("modulate")
@pytest.mark.parametrize("name", ZOO)
def test_modulators_and_updates_start_as_the_identity_and_leave_no_trace(name: str):
    entry = ZOO[name]
    model, inputs, everywhere = entry.make(), entry.inputs(), dict.fromkeys(entry.blocks, entry.tasks)
    hooks = {key: (len(m._forward_hooks), len(m._forward_pre_hooks)) for key, m in model.named_modules()}
    before, keys = model(**inputs), list(model.state_dict())
    adapt = everywhere if name in ADAPTABLE else {}
    dtme.apply(model, dtme.Plan(entry.tasks, everywhere, adapt=adapt, adapt_layers=entry.adapt_layers or None))
    assert_same(model(**inputs), before)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.add_(0.5)
    after = model(**inputs)
    assert all(not torch.allclose(after[task], before[task]) for task in entry.tasks)
    dtme.remove(model)
    assert list(model.state_dict()) == keys
    assert hooks == {key: (len(m._forward_hooks), len(m._forward_pre_hooks)) for key, m in model.named_modules()}
    assert_same(model(**inputs), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ZOO)
def test_a_plan_changes_what_it_names_and_is_taken_out_again(name: str):
    entry = ZOO[name]
    model, inputs = entry.make(), entry.inputs()
    before = model(**inputs)
    plan = everything(entry)
    filled(model, plan)
    for task, output in model(**inputs).items():
        named = any(task in tasks for tasks in [*plan.modulate.values(), *plan.expand.values(), *plan.adapt.values()])
        assert named != torch.allclose(output, before[task])
    dtme.remove(model)
    assert_same(model(**inputs), before, rtol=0, atol=0)


SIZED = [
    *(pytest.param(*param.values, 3, marks=param.marks) for param in PLANNED),
    *((name, everything, samples) for name in TRANSFORMERS for samples in (1, 7)),  # 7: as many as words
]


@pytest.mark.parametrize(("name", "plan_of", "samples"), SIZED, ids=readable)
def test_all_tasks_in_one_pass_are_one_task_at_a_time(name: str, plan_of: Callable[..., dtme.Plan], samples: int):
    entry = ZOO[name]
    if entry.told_batch_size:
        pytest.skip("its heads are told the batch size as a number, and so can be given no batch without rows")
    model, inputs = filled(entry.make(), plan_of(entry)), entry.inputs(samples)
    together = model(**inputs)
    for task in entry.tasks:
        with dtme.tasks(model, task):
            alone = model(**inputs)
        torch.testing.assert_close(alone[task], together[task], **CLOSE)
        assert all(len(alone[other]) == 0 for other in entry.tasks if other != task)


@pytest.mark.cell("mixed batches")
@pytest.mark.parametrize(("name", "plan_of", "samples"), SIZED, ids=readable)
def test_each_row_may_have_a_task_of_its_own(name: str, plan_of: Callable[..., dtme.Plan], samples: int):
    entry = ZOO[name]
    model, inputs = filled(entry.make(), plan_of(entry)), entry.inputs(samples)
    together = model(**inputs)
    tasks = [entry.tasks[(row + 2) % 3] for row in range(samples)]
    with dtme.tasks(model, per_sample=tasks):
        mixed = model(**inputs)
    for row, task in enumerate(tasks):
        torch.testing.assert_close(mixed[task][row], together[task][row], **CLOSE)


@pytest.mark.parametrize(("name", "plan_of"), CHANGED_BY_HAND, ids=readable)
def test_every_task_is_the_model_changed_by_hand(name: str, plan_of: Callable[..., dtme.Plan]):
    entry = ZOO[name]
    base, inputs, plan = entry.make(), entry.inputs(), plan_of(entry)
    model = filled(copy.deepcopy(base), plan)
    for task, output in model(**inputs).items():
        torch.testing.assert_close(output, BY_HAND[plan_of](base, model, plan, task)(**inputs)[task], **CLOSE)


@pytest.mark.cell("expand")
@pytest.mark.parametrize("name", NOT_EXPANDABLE)
def test_blocks_tied_to_their_positions_refuse_task_tokens_and_stay_as_they_were(
    name: str, record_property: Callable[[str, object], None]
):
    entry = ZOO[name]
    for block in entry.blocks:
        model = entry.make()
        why = entry.no_tokens if block == entry.blocks[1] else ""
        with pytest.raises(ValueError, match=rf"'{block}'.*{why}.*Plan modulation there instead") as refused:
            dtme.apply(model, dtme.Plan(entry.tasks, expand={block: entry.tasks}))
        assert not any("dtme" in module_name for module_name, _ in model.named_modules())
        assert not any(module._forward_pre_hooks for module in model.modules())
        if block == entry.blocks[0]:
            record_property("refusal", str(refused.value))


@pytest.mark.parametrize("name", EXPANDABLE)
def test_nothing_ties_global_attention_to_positions(name: str):
    assert not any(fixed_positions(block) for block in find_blocks(ZOO[name].make()).values())


@pytest.mark.cell("adapt")
@pytest.mark.parametrize("name", NOT_ADAPTABLE)
def test_blocks_without_a_linear_layer_refuse_updates(name: str, record_property: Callable[[str, object], None]):
    entry = ZOO[name]
    model = entry.make()
    with pytest.raises(ValueError, match="has no linear layer to adapt") as refused:
        dtme.apply(model, adaptation(entry))
    assert not any("dtme" in module_name for module_name, _ in model.named_modules())
    record_property("refusal", str(refused.value))


def flops(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    with FlopCounterMode(display=False, depth=None) as counter:
        model(**inputs)
    counts = {key.partition(".")[2]: sum(kinds.values()) for key, kinds in counter.get_flop_counts().items()}
    return {block: counts[block] for block in find_blocks(model)}


@pytest.mark.cell("share streams")
@pytest.mark.parametrize("name", ZOO)
def test_cost_is_that_of_as_many_batches_as_streams(name: str):
    entry = ZOO[name]
    base, blocks = entry.make(), entry.blocks
    batches = [flops(base, entry.inputs(3 * streams)) for streams in (1, 2, 3)]
    model = filled(base, modulation(entry))
    streams = [1, *[2] * (len(blocks) - 2), 3]
    assert flops(model, entry.inputs(3)) == {
        block: batches[n - 1][block] for block, n in zip(blocks, streams, strict=True)
    }
    if not entry.told_batch_size:
        with dtme.tasks(model, *entry.tasks[:2]):  # shared as far as the last block
            fewer = flops(model, entry.inputs(3))
        streams = [*[1] * (len(blocks) - 1), 2]
        assert fewer == {block: batches[n - 1][block] for block, n in zip(blocks, streams, strict=True)}


def losses(model: nn.Module, inputs: Inputs) -> Outputs:
    target = next(iter(inputs.values())).double().flatten(1).mean(1)
    return {task: (output.flatten(1).mean(1) - target).square().mean() for task, output in model(**inputs).items()}


@pytest.mark.cell("analyse")
@pytest.mark.parametrize("name", ZOO)
def test_the_analysis_reads_every_block(name: str):
    entry = ZOO[name]
    model = entry.make()
    batches = [entry.inputs(), {key: value.flip(0) for key, value in entry.inputs(2).items()}]
    report = dtme.analyze(model, losses, batches)
    assert report.blocks == tuple(entry.blocks)
    assert report.widths == widths(model, entry.inputs())
    assert report.samples == 5
    off = ~torch.eye(3, dtype=torch.bool).expand_as(report.range_rate)
    for rates in (report.range_rate, report.null_rate):
        assert bool(((rates >= 0) & (rates <= 1))[off].all())
    assert float(report.range_rate[off].max()) > 0
    dtme.apply(model, report.plan(expansion=False))
    assert_same(model(**entry.inputs()), entry.make()(**entry.inputs()))


def widths(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[int, ...]:
    with capture(find_blocks(model), differentiable=False) as caught, torch.no_grad():
        model(**inputs)
    return tuple(entry.tokens.shape[entry.layout.channel] for entry in caught.entries.values())
