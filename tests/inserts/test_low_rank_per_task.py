"""Adaptation: batched low-rank updates equal one merged model per task, and peft's LoRA with one adapter active."""

import copy
import warnings

import pytest
import torch
from models import make_batches, timm_multitask, tiny_vit, torch_encoder_multitask
from torch import Tensor, nn

import dtme
from dtme.inserts.insert import layer_key
from dtme.trunk.linear_layers import linear_layers

TASKS = ("depth", "semseg", "edges")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def make(kind: str) -> nn.Module:
    model = {
        "vit": lambda: tiny_vit(TASKS, seed=0, depth=3),
        "timm": lambda: timm_multitask(TASKS, seed=0, depth=3),
        "batch first": lambda: torch_encoder_multitask(True, TASKS, seed=0, depth=3, dropout=0.0),
        "tokens first": lambda: torch_encoder_multitask(False, TASKS, seed=0, depth=3, dropout=0.0),
    }[kind]()
    return model.double().eval()


def blocks_of(model: nn.Module) -> list[str]:
    from dtme.trunk.blocks import find_blocks

    return list(find_blocks(model))


def plan_of(model: nn.Module, kind: str) -> dtme.Plan:
    first, second, last = blocks_of(model)
    return {
        "all": dtme.Plan(TASKS, adapt={second: TASKS, last: TASKS}, rank=2),
        "some": dtme.Plan(TASKS, adapt={second: ("semseg",), last: ("depth", "edges")}, rank=3),
        "with modulators and tokens": dtme.Plan(
            TASKS,
            {first: ("edges",), last: TASKS},
            {second: ("depth", "semseg"), last: ("edges",)},
            {second: ("edges", "depth")},
        ),
    }[kind]


def fill(model: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.5 if parameter.ndim == 2 else 0.0))


def merged(base: nn.Module, applied: nn.Module, plan: dtme.Plan, task: str) -> nn.Module:
    """A copy of the base with the updates of one task added to its weights, and the rest of the plan for that task."""
    alone = copy.deepcopy(base)
    for block, tasks in plan.adapt.items():
        if task not in tasks:
            continue
        row = tuple(tasks).index(task)
        for layer, linear in linear_layers(alone.get_submodule(block)).items():
            own = applied.get_submodule(block).dtme.low_rank[layer_key(layer)]
            linear.weight.data += own.up[row].detach() @ own.down[row].detach()
    rest = {"modulate": plan.modulate, "expand": plan.expand}
    dtme.apply(alone, dtme.Plan(plan.tasks, **rest))
    values = dict(applied.named_parameters())
    with torch.no_grad():
        for name, parameter in dtme.added_parameters(alone):
            parameter.copy_(values[name])
    return alone


@pytest.mark.parametrize("which", ["all", "some", "with modulators and tokens"])
@pytest.mark.parametrize("kind", ["vit", "timm", "batch first", "tokens first"])
def test_every_task_is_its_own_merged_model(kind: str, which: str):
    base = make(kind)
    plan = plan_of(base, which)
    model = dtme.apply(copy.deepcopy(base), plan)
    fill(model)
    (batch,) = make_batches(base, (3,))
    together = model(*batch["inputs"])
    with dtme.tasks(model, per_sample=["edges", "depth", "semseg"]):
        mixed = model(*batch["inputs"])
    for row, task in enumerate(("edges", "depth", "semseg")):
        expected = merged(base, model, plan, task)(*batch["inputs"])[task]
        torch.testing.assert_close(together[task], expected, **CLOSE)
        torch.testing.assert_close(mixed[task][row], expected[row], **CLOSE)
        if kind != "vit":  # its heads are told the batch size, and so cannot take no rows
            with dtme.tasks(model, task):
                torch.testing.assert_close(model(*batch["inputs"])[task], expected, **CLOSE)


def test_gradients_are_those_of_the_merged_products():
    base = make("timm")
    plan = plan_of(base, "all")
    model = dtme.apply(copy.deepcopy(base), plan)
    fill(model)
    (batch,) = make_batches(base, (3,))
    model(*batch["inputs"])["semseg"].square().sum().backward()
    alone = merged(base, model, plan, "semseg")
    alone(*batch["inputs"])["semseg"].square().sum().backward()
    block, layer = blocks_of(base)[1], "mlp.fc1"
    whole = alone.get_submodule(f"{block}.{layer}").weight.grad
    own = model.get_submodule(block).dtme.low_rank[layer_key(layer)]
    row = TASKS.index("semseg")
    torch.testing.assert_close(own.up.grad[row], whole @ own.down[row].detach().mT, **CLOSE)
    torch.testing.assert_close(own.down.grad[row], own.up[row].detach().mT @ whole, **CLOSE)
    assert float(own.up.grad[TASKS.index("depth")].abs().max()) == 0
    torch.testing.assert_close(model.get_submodule(f"{block}.{layer}").weight.grad, whole, **CLOSE)


def test_it_starts_as_the_identity_and_is_removed_without_trace():
    base = make("timm")
    model = dtme.apply(copy.deepcopy(base), plan_of(base, "all"))
    (batch,) = make_batches(base, (2,))
    before = base(*batch["inputs"])
    for task, output in model(*batch["inputs"]).items():
        torch.testing.assert_close(output, before[task], rtol=0, atol=1e-12)
    dtme.remove(model)
    assert list(model.state_dict()) == list(base.state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(model(*batch["inputs"])[task], before[task]) for task in TASKS)


def test_it_equals_lora_of_peft_with_one_adapter_active():
    peft = pytest.importorskip("peft")
    base = make("timm")
    plan = dtme.Plan(TASKS, adapt=dict.fromkeys(blocks_of(base), TASKS), rank=4)
    model = dtme.apply(copy.deepcopy(base), plan)
    fill(model)
    (batch,) = make_batches(base, (3,))
    together = model(*batch["inputs"])
    layers = [f"{block}.{layer}" for block in blocks_of(base) for layer in linear_layers(base.get_submodule(block))]
    config = peft.LoraConfig(r=4, lora_alpha=4, lora_dropout=0.0, target_modules=layers, bias="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's own, about models without a config
        theirs = peft.get_peft_model(copy.deepcopy(base), config, adapter_name=TASKS[0])
        for task in TASKS[1:]:
            theirs.add_adapter(task, config)
    theirs = theirs.double().eval()
    for row, task in enumerate(TASKS):
        for block in blocks_of(base):
            for layer in linear_layers(base.get_submodule(block)):
                lora = theirs.base_model.model.get_submodule(f"{block}.{layer}")
                own = model.get_submodule(block).dtme.low_rank[layer_key(layer)]
                lora.lora_A[task].weight.data.copy_(own.down[row])
                lora.lora_B[task].weight.data.copy_(own.up[row])
        theirs.set_adapter(task)
        torch.testing.assert_close(together[task], theirs(*batch["inputs"])[task], **CLOSE)


def test_layers_are_chosen_by_name_and_counted():
    base = make("timm")
    block = blocks_of(base)[2]
    model = dtme.apply(
        copy.deepcopy(base), dtme.Plan(TASKS, adapt={block: TASKS}, rank=4, adapt_layers="attn.qkv|mlp.fc2")
    )
    assert set(model.get_submodule(block).dtme.low_rank) == {"attn-qkv", "mlp-fc2"}
    p = 16
    assert sum(x.numel() for _, x in dtme.added_parameters(model)) == 3 * 4 * ((p + 3 * p) + (4 * p + p))
    with pytest.raises(ValueError, match=r"no linear layer to adapt .* it has \['attn.qkv', 'attn.proj'"):
        dtme.apply(base, dtme.Plan(TASKS, adapt={block: TASKS}, adapt_layers="nothing"))
    with pytest.raises(ValueError, match="no regular expression"):
        dtme.Plan(TASKS, adapt_layers="(")


def test_it_is_saved_and_loaded(tmp_path):
    base = make("timm")
    model = dtme.apply(copy.deepcopy(base), plan_of(base, "with modulators and tokens"))
    fill(model)
    dtme.save_pretrained(model, tmp_path / "all")
    dtme.save_pretrained(model, tmp_path / "one", tasks=["edges"])
    (batch,) = make_batches(base, (2,))
    again = dtme.load_pretrained(copy.deepcopy(base), tmp_path / "all")
    alone = dtme.load_pretrained(copy.deepcopy(base), tmp_path / "one")
    for task, output in model(*batch["inputs"]).items():
        assert torch.equal(again(*batch["inputs"])[task], output)
    torch.testing.assert_close(alone(*batch["inputs"])["edges"], model(*batch["inputs"])["edges"], **CLOSE)


def test_compiled_exported_and_copied_it_gives_the_same():
    base = make("timm").float()
    model = dtme.apply(base, plan_of(base, "with modulators and tokens"))
    fill(model)
    inputs: tuple[Tensor, ...] = tuple(x.float() for x in make_batches(make("timm"), (3,))[0]["inputs"])
    expected = model(*inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(model, inputs).module()
    for other in (compiled, exported, copy.deepcopy(model)):
        for task, output in other(*inputs).items():
            torch.testing.assert_close(output, expected[task], rtol=1e-4, atol=1e-5)


def test_a_layer_with_a_forward_of_its_own_keeps_its_gradients():
    base = make("timm")
    layer = f"{blocks_of(base)[1]}.mlp.fc1"
    plan = dtme.Plan(TASKS, adapt={blocks_of(base)[1]: TASKS}, rank=2)
    (batch,) = make_batches(base, (3,))
    patched = dtme.apply(copy.deepcopy(base), plan)
    fill(patched)
    linear = patched.get_submodule(layer)
    linear.forward = lambda inputs: 2 * nn.Linear.forward(linear, inputs)
    patched(*batch["inputs"])["semseg"].square().sum().backward()
    twice = dtme.apply(copy.deepcopy(base), plan)
    fill(twice)
    with torch.no_grad():
        for parameter in twice.get_submodule(layer).parameters(recurse=False):
            parameter.mul_(2)
    twice(*batch["inputs"])["semseg"].square().sum().backward()
    first = next(name for name, _ in base.named_parameters())
    torch.testing.assert_close(patched.get_parameter(first).grad, twice.get_parameter(first).grad, **CLOSE)
    torch.testing.assert_close(linear.weight.grad, 2 * twice.get_submodule(layer).weight.grad, **CLOSE)


def test_outputs_that_a_hook_for_all_modules_keeps_are_not_written_over():
    base = make("timm")
    model = dtme.apply(copy.deepcopy(base), dtme.Plan(TASKS, adapt={blocks_of(base)[1]: TASKS}, rank=2))
    fill(model)
    (batch,) = make_batches(base, (3,))
    kept: list[tuple[Tensor, Tensor]] = []
    watch = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, outputs: (
            kept.append((outputs, outputs.clone())) if isinstance(module, nn.Linear) else None
        )
    )
    try:
        model(*batch["inputs"])
        with torch.no_grad():
            model(*batch["inputs"])
    finally:
        watch.remove()
    assert kept
    assert all(torch.equal(outputs, then) for outputs, then in kept)
