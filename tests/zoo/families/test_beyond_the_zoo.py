"""Models that call, shape or hide things otherwise than most: what works on them does so exactly, and the rest is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import by_hand
import pytest
import timm
import torch
import transformers as hf
from timm.models.mlp_mixer import MlpMixer
from timm_models import OnTimm
from torch import Tensor, nn
from transformers_models import PAD, TASKS, WORDS, Inputs, _made, _text, batch_of

import dtme
from dtme.plan.cost import ModelFlops
from dtme.trunk.blocks import find_blocks
from dtme.trunk.layout import width_of
from zoo import CLOSE, filled

T5 = {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "pad_token_id": PAD}
EXPERTS = {"num_experts": 2, "num_sparse_encoder_layers": 2, "router_jitter_noise": 0.0, "expert_capacity": 64}
FUNNEL = {"vocab_size": WORDS, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 2]}


def _switch() -> Any:
    config = hf.SwitchTransformersConfig(**T5, **EXPERTS, use_cache=False)
    made: Any = _made(hf.SwitchTransformersEncoderModel, config)
    for module in made.modules():
        if hasattr(module, "classifier"):  # a router rounds to single precision, by what else is in the batch
            module.dtype = torch.float64
    return made


TEXT: dict[str, Callable[[], Any]] = {
    "funnel": lambda: _made(hf.FunnelModel, hf.FunnelConfig(**FUNNEL, num_decoder_layers=2)),
    "xlnet": lambda: _made(
        hf.XLNetModel,
        hf.XLNetConfig(vocab_size=WORDS, d_model=16, n_layer=2, n_head=2, d_inner=32, use_mems_eval=False),
    ),
    "squeezebert": lambda: _made(
        hf.SqueezeBertModel, _text(hf.SqueezeBertConfig, embedding_size=16, q_groups=2, k_groups=2, v_groups=2)
    ),
    "switch": _switch,
    "t5": lambda: _made(hf.T5Model, hf.T5Config(**T5, use_cache=False)),
    "gpt2": lambda: _made(
        hf.GPT2Model, hf.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    ),
    "gpt-neo": lambda: _made(
        hf.GPTNeoModel,
        hf.GPTNeoConfig(
            vocab_size=WORDS, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
            window_size=3, max_position_embeddings=32, use_cache=False,
        ),
    ),
    "rwkv": lambda: _made(
        hf.RwkvModel, hf.RwkvConfig(vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, use_cache=False)
    ),
    "deepseek": lambda: _made(
        hf.DeepseekV3Model,
        _text(
            hf.DeepseekV3Config, num_key_value_heads=2, use_cache=False, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4,
            qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=3,
        ),
    ),
}  # fmt: skip
LEVIT: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": (16, 24, 32),
    "key_dim": 8,
    "num_heads": (2, 3, 4),
    "depth": (1, 2, 2),
}
TNT = {
    "img_size": 32,
    "patch_size": 16,
    "embed_dim": 16,
    "inner_dim": 8,
    "depth": 2,
    "num_heads_inner": 2,
    "num_heads_outer": 2,
}


def on_timm(made: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return OnTimm(made()).double().eval()


def image(side: int, samples: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randn(samples, 3, side, side, dtype=torch.float64, generator=generator)}


def losses(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    return {task: output.sin().mean() for task, output in model(**inputs).items()}


def assert_tasks_keep_apart(base: nn.Module, plan: dtme.Plan, inputs: Inputs) -> Any:
    """All tasks in one pass are one task, and one row, at a time, and none is what it was."""
    model, plain = filled(copy.deepcopy(base), plan), base(**inputs)
    together = model(**inputs)
    for task in plan.tasks:
        assert not torch.allclose(together[task], plain[task])
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(**inputs)[task], together[task], **CLOSE)
    rows = [plan.tasks[row % len(plan.tasks)] for row in range(len(next(iter(inputs.values()))))]
    with dtme.tasks(model, per_sample=rows):
        mixed = model(**inputs)
    for row, task in enumerate(rows):
        torch.testing.assert_close(mixed[task][row], together[task][row], **CLOSE)
    return model


def last_two(base: nn.Module) -> list[str]:
    return list(find_blocks(base))[-2:]


def assert_modulated_as_by_hand(base: Any, inputs: Inputs) -> None:
    plan = dtme.Plan(tuple(base.heads), dict.fromkeys(last_two(base), tuple(base.heads)))
    model = assert_tasks_keep_apart(base, plan, inputs)
    for task, output in model(**inputs).items():
        torch.testing.assert_close(output, by_hand.modulated(base, model, plan, task)(**inputs)[task], **CLOSE)


def test_tokens_given_as_query_key_and_value_are_modulated_as_all_three():
    base, inputs = TEXT["funnel"](), batch_of("funnel", 3, 8)
    blocks = last_two(base)
    plan = dtme.Plan(TASKS, {blocks[0]: TASKS[:1], blocks[1]: TASKS})
    model = assert_tasks_keep_apart(base, plan, inputs)
    for task, output in model(**inputs).items():
        alone = copy.deepcopy(base)
        for block, tasks in plan.modulate.items():
            if task not in tasks:
                continue
            insert: Any = model.get_submodule(block).dtme
            row = list(tasks).index(task)

            def change(_: Any, args: Any, scale: Tensor = insert.scale[row], shift: Tensor = insert.shift[row]) -> Any:
                return (*(scale * part + shift for part in args[:3]), *args[3:])

            alone.get_submodule(block).register_forward_pre_hook(change)
        torch.testing.assert_close(output, alone(**inputs)[task], **CLOSE)


def test_what_is_made_of_streams_by_their_type_alone_is_shared():
    base = TEXT["funnel"]()
    plan = dtme.Plan(TASKS, adapt=dict.fromkeys(last_two(base), TASKS), rank=2)
    assert_tasks_keep_apart(
        base, plan, batch_of("funnel", 3, 8)
    )  # its mask of the class token is `new_ones` of the tokens


def told_by(error: BaseException) -> str:
    """Its message, and its notes where Python has them."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def test_an_error_from_inside_a_block_names_it():
    base = TEXT["funnel"]()
    model = dtme.apply(base, dtme.Plan(TASKS, expand={last_two(base)[1]: TASKS}))
    with pytest.raises(RuntimeError, match="must match the size") as raised:
        model(**batch_of("funnel", 3, 8))
    told = told_by(raised.value)
    assert told.count("dtme:") == 1
    assert "trunk.decoder.layers.1" in told
    assert "expansion=False" in told
    mixer = on_timm(lambda: MlpMixer(num_classes=0, img_size=32, patch_size=8, embed_dim=24, num_blocks=2))
    dtme.apply(mixer, dtme.Plan(("depth", "semseg", "scene"), expand={"trunk.blocks.1": ("depth",)}))
    with pytest.raises(RuntimeError, match="cannot be multiplied") as raised:
        mixer(**image(32))
    assert "'trunk.blocks.1' (MixerBlock)" in told_by(raised.value)


class Undisclosed(nn.Module):
    """A block whose attention is causal by a constant in its code, which nothing about it shows."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout, self.calls = nn.Dropout(0.5), 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, -1)
        return tokens + self.dropout(self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)))


class OnUndisclosed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Undisclosed() for _ in range(2))
        self.heads = nn.ModuleDict({"a": nn.Linear(16, 2), "b": nn.Linear(16, 1)})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            tokens = block(tokens)
        return {task: head(tokens) for task, head in self.heads.items()}


def test_causality_in_a_blocks_code_alone_refuses_task_tokens():
    torch.manual_seed(0)
    model = dtme.apply(OnUndisclosed().double(), dtme.Plan(("a", "b"), expand={"blocks.1": ("a",)}))
    says = r"block 'blocks\.1' \(Undisclosed\) takes no task tokens: earlier positions do not see later ones.*expansion=False"
    with pytest.raises(ValueError, match=says):
        model(torch.randn(3, 5, 16).double())


def test_trying_a_block_leaves_no_trace():
    base = OnUndisclosed().double()
    seen: list[int] = []
    base.blocks[0].qkv.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(5, 5, 16, generator=torch.Generator().manual_seed(0)).double()  # square: which are the samples?
    torch.manual_seed(1)
    plain = base(x)
    model = dtme.apply(base, dtme.Plan(("a", "b"), {"blocks.0": ("a", "b")}, adapt={"blocks.1": ("a",)}, rank=2))
    torch.manual_seed(1)
    with dtme.tasks(model, "a"):
        torch.testing.assert_close(model(x)["a"], plain["a"])  # the same dropout
    assert len(seen) == base.blocks[0].calls == base.blocks[1].calls == 2
    assert base.training
    assert base.blocks[0].training


def test_trying_a_block_under_autocast_leaves_its_weights_their_gradients():
    base = OnUndisclosed()
    x = torch.randn(5, 5, 16, generator=torch.Generator().manual_seed(0))
    model = dtme.apply(base, dtme.Plan(("a", "b"), {"blocks.0": ("a", "b")}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(output.float().sum() for output in model(x).values())
    loss.backward()
    assert all(parameter.grad is not None for parameter in base.blocks.parameters())
    assert torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("length", [6, 7])
def test_positions_first_are_refused_also_where_they_are_a_multiple_of_the_samples(length: int):
    base, inputs = TEXT["xlnet"](), batch_of("xlnet", 3, length)
    says = "enter block 'trunk.layer.0' and are read as .* block.batch_first = False if samples come second"
    with pytest.raises(ValueError, match=says):
        dtme.analyze(base, losses, [inputs])
    with pytest.raises(ValueError, match=says):
        dtme.apply(base, dtme.Plan(TASKS, {"trunk.layer.0": TASKS}))(**inputs)


def test_positions_first_are_refused_also_where_there_are_as_many_as_samples():
    base, inputs = TEXT["xlnet"](), batch_of("xlnet", 3, 3)
    says = "'trunk.layer.0' and are read as .* depends on the first.* block.batch_first = False if samples come second"
    with pytest.raises(ValueError, match=says):
        dtme.analyze(base, losses, [inputs])
    with pytest.raises(ValueError, match=says):
        dtme.apply(base, dtme.Plan(TASKS, {"trunk.layer.0": TASKS}))(**inputs)


@pytest.mark.parametrize("length", [3, 6, 7])
def test_positions_first_work_once_the_blocks_say_so(length: int):
    base, inputs = TEXT["xlnet"](), batch_of("xlnet", 3, length)
    for block in base.trunk.layer:
        block.batch_first = False
    assert dtme.analyze(base, losses, [inputs]).samples == 3
    assert_tasks_keep_apart(base, dtme.Plan(TASKS, {"trunk.layer.0": TASKS[:1], "trunk.layer.1": TASKS}), inputs)
    assert_tasks_keep_apart(base, dtme.Plan(TASKS, adapt={"trunk.layer.0": TASKS}, rank=2), inputs)


def test_a_block_that_is_run_without_being_called_is_named():
    base, inputs = TEXT["squeezebert"](), batch_of("squeezebert", 3, 7)
    with pytest.raises(ValueError, match=r"no block ran.*block\(\.\.\.\), not block\.forward"):
        dtme.analyze(base, losses, [inputs])
    model = dtme.apply(base, dtme.Plan(TASKS, {"trunk.encoder.layers.1": TASKS}))
    with pytest.raises(ValueError, match=r"runs block 'trunk\.encoder\.layers\.1' without calling it"):
        model(**inputs)
    dtme.remove(model)
    assert model(**inputs).keys() == set(TASKS)


@pytest.mark.parametrize(
    ("name", "says"),
    [("gpt-neo", r"buffer 'attn\.attention\.bias' hides later positions"), ("rwkv", r"hands a state .*\(state\)")],
)
def test_blocks_in_which_earlier_positions_could_not_see_task_tokens_refuse_them(name: str, says: str):
    base = TEXT[name]()
    block = last_two(base)[1]
    model = dtme.apply(base, dtme.Plan(TASKS, expand={block: TASKS}))
    with pytest.raises(ValueError, match=rf"block '{block}' .*takes no task tokens: .*{says}.*expansion=False"):
        model(input_ids=batch_of(name)["input_ids"])


def test_what_is_read_may_be_as_long_as_what_is_written_with_its_task_tokens():
    base = TEXT["t5"]()
    for head in base.heads.values():
        head.register_forward_pre_hook(lambda _, args: (args[0], None))
    words = torch.randint(4, WORDS, (3, 5), generator=torch.Generator().manual_seed(4))
    first, second = last_two(base)
    plan = dtme.Plan(TASKS, expand={first: TASKS[:1], second: TASKS}, tokens_per_task=2)
    assert_tasks_keep_apart(base, plan, {**batch_of("t5", 3, 7), "decoder_input_ids": words})


def test_what_a_block_with_experts_returns_for_all_samples_is_not_taken_for_rows():
    base = TEXT["switch"]()
    first, second = last_two(base)
    assert_tasks_keep_apart(base, dtme.Plan(TASKS, expand={first: TASKS[:1], second: TASKS}), batch_of("switch"))


def test_layers_of_one_expert_are_named():
    base = TEXT["switch"]()
    block = last_two(base)[1]
    model = dtme.apply(copy.deepcopy(base), dtme.Plan(TASKS, adapt={block: TASKS}))
    with pytest.raises(ValueError, match=rf"of block '{block}' .*experts.*adapt_layers"):
        model(**batch_of("switch"))
    pattern = r".*SelfAttention\.(q|v)"
    assert_tasks_keep_apart(base, dtme.Plan(TASKS, adapt={block: TASKS}, adapt_layers=pattern), batch_of("switch"))


@pytest.mark.parametrize(("samples", "length"), [(1, 7), (3, 7), (4, 4)])  # in the last, samples might be positions
def test_the_analysis_adds_nothing_to_a_cache(samples: int, length: int):
    base, inputs = TEXT["gpt2"](), batch_of("gpt2", samples, length)
    cached = dtme.analyze(base, losses, [inputs])
    base.trunk.config.use_cache = False
    plain = dtme.analyze(base, losses, [inputs])
    torch.testing.assert_close(cached.range_rate, plain.range_rate, **CLOSE)
    assert isinstance(cached.flops, ModelFlops)
    assert isinstance(plain.flops, ModelFlops)
    assert cached.flops.plain == plain.flops.plain


@pytest.mark.parametrize("grid", [False, True])
def test_widths_are_what_the_first_layer_takes_and_not_what_a_norm_behind_it_does(grid: bool):
    base = on_timm(partial(timm.create_model, "levit_conv_128s" if grid else "levit_128s", num_classes=0, **LEVIT))
    assert [width_of(block) for block in find_blocks(base).values()] == [16, 24, 24, 32, 32]
    with torch.no_grad():
        assert_modulated_as_by_hand(base, image(64))
    report = dtme.analyze(base, losses, [image(64)])
    assert report.widths == (16, 24, 24, 32, 32)


def test_a_norm_of_compressed_queries_is_no_width():
    deepseek = TEXT["deepseek"]()
    assert [width_of(block) for block in find_blocks(deepseek).values()] == [16, 16, 16]
    assert_modulated_as_by_hand(deepseek, batch_of("deepseek"))


def test_a_sequence_beside_its_windows_is_named():
    base = on_timm(partial(timm.create_model, "tnt_s_legacy_patch16_224", num_classes=0, **TNT))
    tasks = tuple(base.heads)
    model = dtme.apply(base, dtme.Plan(tasks, {"trunk.blocks.1": tasks}))
    with pytest.raises(
        ValueError, match=r"block 'trunk.blocks.1' takes 12 rows of tokens and, as 'patch_embed' \(3, 5, 16\)"
    ):
        model(**image(32))
    with dtme.tasks(model, "depth"):
        assert model(**image(32))["depth"].shape[0] == 3


def test_windows_in_some_blocks_alone_are_named():
    base = on_timm(partial(timm.create_model, "mobilevit_xxs", num_classes=0))
    with pytest.raises(ValueError, match=r"rows of tokens enter block '.*', but 3 enter block 'trunk\.stages.*blocks="):
        dtme.analyze(base, losses, [image(64)])
