"""Adaptation of `nn.MultiheadAttention`: its forward in the open, and updates of its projections, one per task."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtme
from dtme.inserts.insert import layer_key
from dtme.trunk.attention import is_open_to, open_attention
from dtme.trunk.linear_layers import linear_layers

TASKS = ("a", "b", "c")
P, HEADS, B, N = 8, 2, 3, 5
CLOSE = {"rtol": 0, "atol": 1e-11}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unchanged(name: str, inputs: Tensor, outputs: Tensor, rows: slice) -> Tensor:
    return outputs


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "bias of keys": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True},
    "other sizes": {"kdim": 6, "vdim": 4},
    "other sizes, no bias": {"kdim": 6, "vdim": 4, "bias": False},
}
HIDDEN = torch.rand(N, N, generator=torch.Generator().manual_seed(2)) < 0.4
HIDDEN[:, 0] = False
PADDING = torch.arange(N) >= torch.tensor([[5], [3], [2]])
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "bool": {"attn_mask": HIDDEN},
    "float": {"attn_mask": draw(N, N)},
    "per head": {"attn_mask": torch.stack([HIDDEN, HIDDEN.roll(1, 0)] * B)},
    "padding": {"key_padding_mask": PADDING},
    "bool and padding": {"attn_mask": HIDDEN, "key_padding_mask": PADDING},
    "float and padding": {
        "attn_mask": draw(N, N),
        "key_padding_mask": torch.zeros(B, N).double().masked_fill(PADDING, -9),
    },
    "causal": {"attn_mask": torch.ones(N, N, dtype=torch.bool).triu(1), "is_causal": True},
    "causal and padding": {
        "attn_mask": torch.ones(N, N, dtype=torch.bool).triu(1),
        "is_causal": True,
        "key_padding_mask": PADDING,
    },
}
WEIGHTS = [
    {"need_weights": False},
    {"need_weights": True},
    {"need_weights": True, "average_attn_weights": False},
]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_open_attention_is_attention(kind: str, mask: str, batch_first: bool):
    attention = nn.MultiheadAttention(P, HEADS, dropout=0.3, batch_first=batch_first, **KINDS[kind]).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    twin = copy.deepcopy(attention)
    opened = open_attention(attention, unchanged)
    x = draw(B, N, P)
    x = x if batch_first else x.transpose(0, 1)
    cases = [(x, *(draw(*x.shape[:2], size, seed=size) for size in (attention.kdim, attention.vdim)))]
    if kind.startswith("other"):
        assert len(cases) == 1
    else:
        cases += [(x, x, x), (x, cases[0][1], cases[0][1])]
    for (inputs, options), training in itertools.product(itertools.product(cases, WEIGHTS), (False, True)):
        results = []
        for each in (attention.train(training), twin.train(training)):
            torch.manual_seed(5)  # dropout draws alike
            results.append(each(*inputs, **MASKS[mask], **options))
        torch.testing.assert_close(results[0][0], results[1][0], **CLOSE)
        assert (results[0][1] is None) == (results[1][1] is None) == (not options["need_weights"])
        if options["need_weights"]:
            torch.testing.assert_close(results[0][1], results[1][1], **CLOSE)
    assert is_open_to(attention)
    opened.remove()
    assert vars(attention).keys() == vars(twin).keys()


def test_open_attention_wants_samples_and_the_mask_it_is_hinted_at():
    attention = nn.MultiheadAttention(P, HEADS)
    open_attention(attention, unchanged)
    with pytest.raises(ValueError, match=r"query \(5, 8\)"):
        attention(*[torch.zeros(N, P)] * 3)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        attention(*[torch.zeros(N, B, P)] * 3, is_causal=True)


class Plain(nn.Module):
    """A block by hand that wants the attention weights as well."""

    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(P), nn.Linear(P, P)
        self.attention = nn.MultiheadAttention(P, HEADS, batch_first=True)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(tokens)
        attended, weights = self.attention(normed, normed, normed, average_attn_weights=False)
        return tokens + self.mlp(attended), weights


class Model(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        first = "second" not in kind
        options = {"dropout": 0.0, "batch_first": first, "norm_first": "norm first" in kind}
        made = {
            "encoder": lambda: nn.TransformerEncoderLayer(P, HEADS, 2 * P, **options),
            "decoder": lambda: nn.TransformerDecoderLayer(P, HEADS, 2 * P, **options),
            "by hand": Plain,
        }[kind.split(",")[0]]
        self.layers = nn.ModuleList(made() for _ in range(2))
        self.heads = nn.ModuleDict({task: nn.Identity() for task in TASKS})

    def forward(self, tokens: Tensor, *args: Any, **told: Any) -> dict[str, Tensor]:
        for layer in self.layers:
            tokens = layer(tokens, *args, **told)
            tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        return {task: head(tokens) for task, head in self.heads.items()}


MODELS = ("encoder", "encoder, norm first", "encoder, samples second", "decoder", "decoder, samples second", "by hand")
PLANS = {
    "all": dtme.Plan(TASKS, adapt={"layers.0": TASKS, "layers.1": TASKS}, rank=3),
    "some": dtme.Plan(TASKS, adapt={"layers.0": ("b",), "layers.1": ("a", "c")}),
    "attention alone": dtme.Plan(TASKS, adapt={"layers.1": TASKS}, adapt_layers=".*(in|out)_proj"),
    "out alone": dtme.Plan(TASKS, adapt={"layers.0": TASKS}, adapt_layers=".*out_proj"),
    "with tokens": dtme.Plan(TASKS, {"layers.1": ("a",)}, {"layers.0": ("a", "b")}, {"layers.0": ("b", "c")}),
}


def call_of(kind: str, samples: int = B) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Arguments with every mask that the blocks take."""
    tokens, memory, padding = draw(samples, N, P), draw(samples, N, P, seed=3), PADDING[:samples]
    if "second" in kind:
        tokens, memory = tokens.transpose(0, 1), memory.transpose(0, 1)
    if kind == "by hand":
        return (tokens,), {}
    if kind.startswith("encoder"):
        return (tokens,), {"src_mask": HIDDEN, "src_key_padding_mask": padding}
    remembered = torch.arange(N) >= torch.tensor([[5], [1], [3]])[:samples]
    told = {"tgt_mask": HIDDEN, "tgt_key_padding_mask": padding, "memory_key_padding_mask": remembered}
    return (tokens, memory), told


def made(kind: str) -> Model:
    torch.manual_seed(0)
    model = Model(kind).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def filled(base: nn.Module, plan: dtme.Plan) -> Any:
    model = dtme.apply(copy.deepcopy(base), plan)
    with torch.no_grad():
        for place, (_, parameter) in enumerate(dtme.added_parameters(model)):
            parameter.copy_(0.3 * draw(*parameter.shape, seed=place) + 0.1)
    return model


def merged(base: nn.Module, model: Any, plan: dtme.Plan, task: str) -> nn.Module:
    """A copy with the updates of one task added to its weights, and the rest of the plan for that task."""
    alone = copy.deepcopy(base)
    for block, tasks in plan.adapt.items():
        for layer, linear in (
            linear_layers(alone.get_submodule(block), plan.adapt_layers).items() if task in tasks else ()
        ):
            own = model.get_submodule(block).dtme.low_rank[layer_key(layer)]
            row = tuple(tasks).index(task)
            linear.weight.data.add_((own.up[row] @ own.down[row]).detach())
    dtme.apply(alone, dtme.Plan(TASKS, plan.modulate, plan.expand))
    values = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in dtme.added_parameters(alone):
            parameter.copy_(values[name])
    return alone


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("which", PLANS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_task_is_its_own_merged_model(kind: str, which: str, grad: bool):
    """Without gradients too, where PyTorch's layers have a fused path that knows of no updates."""
    base, plan = made(kind), PLANS[which]
    args, told = call_of(kind)
    with torch.set_grad_enabled(grad):
        start, before = dtme.apply(copy.deepcopy(base), plan)(*args, **told), base(*args, **told)
        model = filled(base, plan)
        together = model(*args, **told)
        with dtme.tasks(model, per_sample=["c", "a", "b"]):
            mixed = model(*args, **told)
        for row, task in enumerate(("c", "a", "b")):
            if not plan.expand:
                torch.testing.assert_close(start[task], before[task], **CLOSE)
            expected = merged(base, model, plan, task)(*args, **told)[task]
            torch.testing.assert_close(together[task], expected, **CLOSE)
            assert not torch.allclose(expected, before[task])
            at = (slice(None), row) if "second" in kind else (row,)
            torch.testing.assert_close(mixed[task][at], expected[at], **CLOSE)
            with dtme.tasks(model, task):
                torch.testing.assert_close(model(*args, **told)[task], expected, **CLOSE)


def test_the_updates_of_attention_are_counted_and_named():
    model = filled(made("encoder"), PLANS["all"])
    layers = {"self_attn-in_proj": 3 * P, "self_attn-out_proj": P, "linear1": 2 * P, "linear2": P}
    assert list(model.layers[0].dtme.low_rank) == list(layers)
    inputs = {"linear2": 2 * P}
    expected = 2 * 3 * 3 * sum(inputs.get(layer, P) + outputs for layer, outputs in layers.items())
    assert sum(parameter.numel() for _, parameter in dtme.added_parameters(model)) == expected


@pytest.mark.parametrize("kind", ["encoder", "encoder, samples second", "decoder", "by hand"])
def test_removed_the_attention_has_its_own_forward_again(kind: str):
    base = made(kind)
    model = filled(base, PLANS["all"])
    args, told = call_of(kind)
    model(*args, **told)
    dtme.remove(model)
    for (name, one), (_, other) in zip(model.named_modules(), base.named_modules(), strict=True):
        assert vars(one).keys() == vars(other).keys(), name
    outputs, expected = model(*args, **told), base(*args, **told)
    assert all(torch.equal(outputs[task], expected[task]) for task in TASKS)
    assert list(model.state_dict()) == list(base.state_dict())


def test_a_copy_has_updates_of_its_own():
    model = filled(made("encoder"), PLANS["with tokens"])
    args, told = call_of("encoder")
    before = model(*args, **told)
    file = io.BytesIO(pickle.dumps(model))
    for other in (copy.deepcopy(model), pickle.load(file)):  # noqa: S301
        for task, output in other(*args, **told).items():
            assert torch.equal(output, before[task])
        with torch.no_grad():
            for _, parameter in dtme.added_parameters(other):
                parameter.zero_()
        assert not torch.equal(other(*args, **told)["b"], before["b"])
        assert torch.equal(model(*args, **told)["b"], before["b"])
        dtme.remove(other)


def test_compiled_and_exported_it_gives_the_same():
    model = filled(made("encoder"), PLANS["with tokens"]).float()
    args, told = call_of("encoder")
    args = tuple(x.float() for x in args)
    with torch.no_grad():
        expected = model(*args, **told)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        exported = torch.export.export(model, args, told).module()
        for other in (compiled, exported):
            for task, output in other(*args, **told).items():
                torch.testing.assert_close(output, expected[task], rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_merged_products():
    base = made("encoder")
    model = filled(base, PLANS["all"])
    args, told = call_of("encoder")
    model(*args, **told)["b"].square().sum().backward()
    alone: Any = merged(base, model, PLANS["all"], "b")
    alone(*args, **told)["b"].square().sum().backward()
    whole = alone.layers[0].self_attn.in_proj_weight.grad
    own = model.layers[0].dtme.low_rank["self_attn-in_proj"]
    torch.testing.assert_close(own.up.grad[1], whole @ own.down[1].detach().mT, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own.down.grad[1], own.up[1].detach().mT @ whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.layers[0].self_attn.in_proj_weight.grad, whole, rtol=1e-9, atol=1e-9)
    assert not own.up.grad[0].any()


def test_an_attention_with_a_forward_of_its_own_is_named():
    class Own(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model = made("by hand")
    model.layers[1].attention.__class__ = Own
    before = {name: len(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(
        ValueError, match=r"plan.adapt: in block 'layers.1', 'attention.in_proj' belongs to a Own .*adapt_layers.*'mlp'"
    ):
        dtme.apply(model, PLANS["all"])
    assert {name: len(vars(module)) for name, module in model.named_modules()} == before
    args, _ = call_of("by hand")
    others = dtme.Plan(TASKS, adapt={"layers.1": TASKS}, adapt_layers="mlp")
    assert set(dtme.apply(model, others)(*args)) == set(TASKS)


@contextmanager
def without_fused_path() -> Iterator[None]:
    """Torch's fused layers know of no adapters of peft."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def times_out_proj_is_added() -> float:
    """As of 0.21, peft adds the update of `out_proj` twice (huggingface/peft#3774)."""
    import peft

    model = nn.Sequential(nn.MultiheadAttention(2, 1))
    adapted: Any = peft.inject_adapter_in_model(peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"]), model)[0]
    layer = adapted.base_layer.out_proj
    nn.init.ones_(layer.lora_A["default"].weight)
    nn.init.ones_(layer.lora_B["default"].weight)
    before = adapted.out_proj.weight.detach().clone()
    adapted.merge()
    return round((adapted.out_proj.weight - before).mean().item())


@pytest.mark.parametrize("kind", ["encoder", "encoder, samples second", "by hand"])
def test_it_equals_lora_of_peft_with_one_adapter_active(kind: str):
    peft = pytest.importorskip("peft")
    base, plan = made(kind), PLANS["all"]
    model = filled(base, plan)
    args, told = call_of(kind)
    together = model(*args, **told)
    targets = [name for name, m in base.named_modules() if isinstance(m, nn.MultiheadAttention | nn.Linear)]
    targets = [name for name in targets if "out_proj" not in name]
    config = peft.LoraConfig(r=3, lora_alpha=3, lora_dropout=0.0, target_modules=targets, bias="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's own, about models without a config
        theirs = peft.get_peft_model(copy.deepcopy(base), config, adapter_name=TASKS[0])
        for task in TASKS[1:]:
            theirs.add_adapter(task, config)
    theirs = theirs.double().eval()
    times = times_out_proj_is_added()
    for row, task in enumerate(TASKS):
        for block in plan.adapt:
            for layer in linear_layers(base.get_submodule(block)):
                own = model.get_submodule(block).dtme.low_rank[layer_key(layer)]
                place = f"{block}.{layer}".replace(".in_proj", "").replace(".out_proj", ".base_layer.out_proj")
                lora = theirs.base_model.model.get_submodule(place)
                lora.lora_A[task].weight.data.copy_(own.down[row])
                lora.lora_B[task].weight.data.copy_(own.up[row] / (times if "out_proj" in layer else 1))
        theirs.set_adapter(task)
        with torch.no_grad(), without_fused_path():
            torch.testing.assert_close(together[task], theirs(*args, **told)[task], **CLOSE)
