"""Trunks beside the zoo, for what they tell their blocks: sinusoids, slopes, windows, another sequence, a class apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from torch import Tensor, nn
from transformers_models import PAD, TASKS, WORDS, Inputs, _causal, _made, _text, batch_of

import dtme
from dtme.trunk.blocks import find_blocks
from zoo import CLOSE, filled


def _t5() -> Any:
    return hf.T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=PAD, use_cache=False
    )


def _bart() -> Any:
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder")
             for what, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    return hf.BartConfig(
        vocab_size=WORDS, d_model=16, max_position_embeddings=32, pad_token_id=PAD, use_cache=False, **sizes
    )


TRUNKS: dict[str, Callable[[], Any]] = {
    "roformer": lambda: _made(hf.RoFormerModel, _text(hf.RoFormerConfig, embedding_size=16)),
    "bloom": lambda: _made(hf.BloomModel, hf.BloomConfig(vocab_size=WORDS, hidden_size=16, n_layer=3, n_head=2, use_cache=False)),
    "mistral": lambda: _made(hf.MistralModel, _causal(hf.MistralConfig, sliding_window=3)),
    "gemma2": lambda: _made(hf.Gemma2Model, _causal(hf.Gemma2Config, head_dim=8, sliding_window=3)),
    "t5": lambda: _made(hf.T5Model, _t5()),
    "bart": lambda: _made(hf.BartModel, _bart()),
}  # fmt: skip
TWO_SEQUENCES = ("t5", "bart")
SAMPLES, READ = 3, 9


def inputs_of(name: str) -> Inputs:
    inputs = batch_of(name, SAMPLES, READ)
    if name not in TWO_SEQUENCES:
        return inputs
    words = torch.randint(4, WORDS, (SAMPLES, 5), generator=torch.Generator().manual_seed(4))
    return {**inputs, "decoder_input_ids": words}


def model_of(name: str) -> Any:
    model = TRUNKS[name]()
    if name in TWO_SEQUENCES:  # the padding that the heads are told of is that of the other sequence
        for head in model.heads.values():
            head.register_forward_pre_hook(lambda _, args: (args[0], None))
    return model


def plans(blocks: list[str]) -> list[dtme.Plan]:
    last = blocks[-2:]
    return [
        dtme.Plan(TASKS, {blocks[0]: TASKS[:2], last[1]: TASKS}),
        dtme.Plan(TASKS, expand={last[0]: TASKS[:2], last[1]: TASKS}, tokens_per_task=2),
        dtme.Plan(TASKS, {blocks[1]: TASKS[:1]}, {last[0]: TASKS[:2]}, {last[1]: TASKS[1:]}, rank=2),
    ]


@pytest.mark.parametrize("name", TRUNKS)
def test_all_tasks_in_one_pass_are_one_task_or_row_at_a_time(name: str):
    base, inputs = model_of(name), inputs_of(name)
    plain = base(**inputs)
    for plan in plans(list(find_blocks(base))):
        model = filled(copy.deepcopy(base), plan)
        together = model(**inputs)
        for task in TASKS:
            assert not torch.allclose(together[task], plain[task])
            with dtme.tasks(model, task):
                torch.testing.assert_close(model(**inputs)[task], together[task], **CLOSE)
        with dtme.tasks(model, per_sample=TASKS):
            mixed = model(**inputs)
        for row, task in enumerate(TASKS):
            torch.testing.assert_close(mixed[task][row], together[task][row], **CLOSE)


@pytest.mark.parametrize("name", TRUNKS)
def test_padding_stays_hidden_from_what_task_tokens_join(name: str):
    base, inputs = model_of(name), inputs_of(name)
    other = torch.randint(4, WORDS, (SAMPLES, READ), generator=torch.Generator().manual_seed(5))
    changed = {**inputs, "input_ids": torch.where(inputs["attention_mask"] > 0, inputs["input_ids"], other)}
    for plan in plans(list(find_blocks(base)))[1:]:
        model = filled(copy.deepcopy(base), plan)
        for task, output in model(**changed).items():
            torch.testing.assert_close(output, model(**inputs)[task], **CLOSE)


def test_sinusoids_do_not_turn_task_tokens():
    model = filled(model_of("roformer"), dtme.Plan(TASKS, expand={"trunk.encoder.layer.1": TASKS}))
    given: list[Tensor] = []
    attention = model.get_submodule("trunk.encoder.layer.1.attention.self")
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["sinusoidal_pos"]), with_kwargs=True
    )
    model(**inputs_of("roformer"))
    sin, cos = given[0].chunk(2, -1)
    assert sin.shape[-2] == READ + 1
    assert bool((sin[..., -1, :] == 0).all() & (cos[..., -1, :] == 1).all())
    assert bool((sin[..., 1:-1, :] != 0).any())


def test_attention_in_chunks_is_named():
    model = _made(hf.LongformerModel, _text(hf.LongformerConfig, attention_window=[4] * 3))
    with pytest.raises(ValueError, match=r"'trunk.encoder.layer.1', because .* is made for windows of 2 positions"):
        dtme.apply(model, dtme.Plan(TASKS, expand={"trunk.encoder.layer.1": TASKS}))


class Classifier(nn.Module):
    """Heads on the class token of a trunk that keeps it apart until the end."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
        self.trunk: Any = timm.create_model("cait_xxs24_224", pretrained=False, num_classes=0, **sizes)
        self.heads = nn.ModuleDict({task: nn.Linear(16, 2) for task in TASKS})
        for parameter in self.trunk.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        token = self.trunk.forward_features(image)[:, 0]
        return {task: head(token) for task, head in self.heads.items()}


def test_a_block_that_returns_fewer_tokens_than_entered_is_named():
    model = filled(Classifier().eval(), dtme.Plan(TASKS, expand={"trunk.blocks_token_only.1": TASKS[:2]}))
    with pytest.raises(
        ValueError, match=r"'trunk.blocks_token_only.1'.*of 17 tokens, .* it returns 1, .*plan modulation"
    ):
        model(torch.zeros(2, 3, 32, 32))
    dtme.remove(model)
    filled(model, dtme.Plan(TASKS, {"trunk.blocks_token_only.1": TASKS[:2]}, {"trunk.blocks.1": TASKS}))
    outputs = model(torch.randn(2, 3, 32, 32))
    assert not torch.allclose(outputs[TASKS[0]], outputs[TASKS[1]])
