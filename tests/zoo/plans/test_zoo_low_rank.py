"""Adaptation on the whole zoo equals peft's LoRA with one adapter active, for every task."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import dtme
from dtme.inserts.insert import layer_key
from dtme.trunk.blocks import find_blocks
from dtme.trunk.fast_paths import fused_projections
from dtme.trunk.linear_layers import linear_layers
from zoo import ADAPTABLE, ZOO

peft = pytest.importorskip("peft")


def with_adapters(base: nn.Module, targets: list[str], tasks: tuple[str, ...], rank: int) -> Any:
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets, bias="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's own, about models without a config
        for task in tasks:
            peft.inject_adapter_in_model(config, base, adapter_name=task)
    for block in find_blocks(base).values():
        for attention in fused_projections(block).values():  # which uses the weight of a layer without calling it
            attention.qkv_bias_separate = True
    return base.double().eval()


@pytest.fixture
def layers_run_apart() -> Iterator[None]:
    """Torch's fused layers know of no adapters of peft."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.usefixtures("layers_run_apart")
@pytest.mark.parametrize("name", ADAPTABLE)
def test_every_task_is_lora_of_peft_with_its_adapter_active(name: str):
    entry = ZOO[name]
    base, inputs, blocks = entry.make(), entry.inputs(), entry.blocks
    pattern = entry.adapt_layers
    if any(isinstance(m, nn.MultiheadAttention) for m in base.modules()):
        pattern = "linear1|linear2"  # peft's own update of this attention is tested beside ours
    plan = dtme.Plan(
        entry.tasks, adapt=dict.fromkeys((blocks[0], blocks[-1]), entry.tasks), rank=2, adapt_layers=pattern
    )
    model = dtme.apply(copy.deepcopy(base), plan)
    generator = torch.Generator().manual_seed(1)
    layers = {
        f"{block}.{layer}": model.get_submodule(block).dtme.low_rank[layer_key(layer)]
        for block in plan.adapt
        for layer in linear_layers(base.get_submodule(block), plan.adapt_layers)
    }
    theirs = with_adapters(base, list(layers), entry.tasks, plan.rank)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
        together = model(**inputs)
        for row, task in enumerate(entry.tasks):
            for layer, own in layers.items():
                lora = theirs.get_submodule(layer)
                lora.lora_A[task].weight.copy_(own.down[row])
                lora.lora_B[task].weight.copy_(own.up[row])
                lora.set_adapter(task)
            torch.testing.assert_close(together[task], theirs(**inputs)[task], rtol=1e-9, atol=1e-9)


def test_gpt2_whose_layers_are_transposed_is_adapted():
    tasks = ("a", "b", "c")

    class OnGpt2(nn.Module):
        def __init__(self):
            super().__init__()
            config = hf.GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=8, use_cache=False)
            self.trunk: Any = hf.GPT2Model(config)
            self.heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in tasks})

        def forward(self, words: Tensor) -> dict[str, Tensor]:
            tokens = self.trunk(words).last_hidden_state
            return {task: head(tokens) for task, head in self.heads.items()}

    torch.manual_seed(0)
    base, words = OnGpt2().double().eval(), torch.tensor([[4, 5, 6, 7], [8, 9, 3, 2]])
    plan = dtme.Plan(tasks, adapt={"trunk.h.0": tasks, "trunk.h.1": ("b",)}, rank=2)
    model = dtme.apply(copy.deepcopy(base), plan)
    for _, parameter in dtme.added_parameters(model):
        nn.init.normal_(parameter)
    layers = linear_layers(base.get_submodule("trunk.h.0"))
    assert list(layers) == ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert (layers["attn.c_attn"].in_features, layers["attn.c_attn"].out_features) == (8, 24)
    together = model(words)
    for task in tasks:
        alone = copy.deepcopy(base)
        for block, own_tasks in plan.adapt.items():
            for layer, linear in linear_layers(alone.get_submodule(block)).items() if task in own_tasks else ():
                own = model.get_submodule(block).dtme.low_rank[layer.replace(".", "-")]
                row = tuple(own_tasks).index(task)
                linear.weight.data += (own.up[row] @ own.down[row]).detach()
        expected = alone(words)[task]
        torch.testing.assert_close(together[task], expected, rtol=0, atol=1e-11)
        assert not torch.allclose(expected, base(words)[task])
