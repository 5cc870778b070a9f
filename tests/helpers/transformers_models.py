"""Small transformers built from configs of the transformers library, with random weights and one head per task."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

TASKS = ("rating", "topic", "irony")
WIDTH, HEADS, DEPTH, WORDS, PAD = 16, 2, 3, 30, 1
Inputs = dict[str, Tensor]


class Head(nn.Module):
    """The mean over the tokens that are not padding, squashed, to three scores."""

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Linear(width, 3)

    def forward(self, tokens: Tensor, keep: Tensor | None) -> Tensor:
        if keep is None:
            return self.project(tokens.mean(1).tanh())
        keep = keep.to(tokens.dtype)
        return self.project(((tokens * keep[:, :, None]).sum(1) / keep.sum(1, keepdim=True)).tanh())


class Multitask(nn.Module):
    """A trunk of the library, as it is, and a head per task on its last hidden state."""

    def __init__(self, trunk: Any, width: int):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: Head(width) for task in TASKS})

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        tokens = self.trunk(**inputs).last_hidden_state
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        return {task: head(tokens, inputs.get("attention_mask")) for task, head in self.heads.items()}


def _sized(config: type, **more: Any) -> Any:
    common = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
        **more,
    }
    return config(**common)


def _text(config: type, **more: Any) -> Any:
    return _sized(config, vocab_size=WORDS, pad_token_id=PAD, bos_token_id=2, eos_token_id=3, **more)


def _causal(config: type, **more: Any) -> Any:
    return _text(config, num_key_value_heads=1, max_position_embeddings=32, use_cache=False, **more)


def _deberta(**more: Any) -> Any:
    return _text(
        hf.DebertaV2Config, relative_attention=True, position_buckets=4, max_relative_positions=16,
        pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", position_biased_input=False, **more,
    )  # fmt: skip


def _swin() -> Any:
    return hf.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=2, drop_path_rate=0.0
    )


def _segformer() -> Any:
    return hf.SegformerConfig(
        num_encoder_blocks=2, depths=[2, 2], sr_ratios=[2, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2],
        mlp_ratios=[2, 2], patch_sizes=[3, 3], strides=[2, 2], drop_path_rate=0.0,
    )  # fmt: skip


def _made(trunk: Callable[..., Any], config: Any, width: int = WIDTH, **options: Any) -> Multitask:
    """A trunk whose weights are large enough to tell one position, and one padding, from another."""
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "dropout_rate"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Multitask(trunk(config, **options), width)
        for name, parameter in model.named_parameters():
            if not name.startswith("heads"):
                nn.init.normal_(parameter, mean=float("norm" in name.lower() and name.endswith("weight")), std=0.3)
    return model.double().eval()


TEXT: dict[str, Callable[[], Multitask]] = {
    "bert": lambda: _made(hf.BertModel, _text(hf.BertConfig), add_pooling_layer=False),
    "bert eager": lambda: _made(
        hf.BertModel, _text(hf.BertConfig, attn_implementation="eager"), add_pooling_layer=False
    ),
    "minilm": lambda: _made(hf.BertModel, _text(hf.BertConfig, type_vocab_size=2, layer_norm_eps=1e-12)),
    "roberta": lambda: _made(hf.RobertaModel, _text(hf.RobertaConfig), add_pooling_layer=False),
    "distilbert": lambda: _made(
        hf.DistilBertModel,
        hf.DistilBertConfig(
            vocab_size=WORDS, dim=WIDTH, n_layers=DEPTH, n_heads=HEADS, hidden_dim=32, pad_token_id=PAD
        ),
    ),
    "deberta-v2": lambda: _made(hf.DebertaV2Model, _deberta(share_att_key=True)),
    "deberta-v2 own position keys": lambda: _made(hf.DebertaV2Model, _deberta(share_att_key=False)),
    "modernbert": lambda: _made(
        hf.ModernBertModel,
        _text(hf.ModernBertConfig, global_attn_every_n_layers=2, local_attention=4, cls_token_id=2, sep_token_id=3),
    ),
    "t5 encoder": lambda: _made(
        hf.T5EncoderModel,
        hf.T5Config(
            vocab_size=WORDS, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=DEPTH, num_heads=HEADS, pad_token_id=PAD
        ),
    ),
    "clip text": lambda: _made(hf.CLIPTextModel, _text(hf.CLIPTextConfig, max_position_embeddings=32)),
    "llama": lambda: _made(hf.LlamaModel, _causal(hf.LlamaConfig)),
    "llama eager": lambda: _made(hf.LlamaModel, _causal(hf.LlamaConfig, attn_implementation="eager")),
    "qwen2": lambda: _made(hf.Qwen2Model, _causal(hf.Qwen2Config)),
    "qwen3": lambda: _made(hf.Qwen3Model, _causal(hf.Qwen3Config, head_dim=4)),
}
CAUSAL = ("clip text", "llama", "llama eager", "qwen2", "qwen3")
IMAGE: dict[str, Callable[[], Multitask]] = {
    "vit": lambda: _made(hf.ViTModel, _sized(hf.ViTConfig, image_size=16, patch_size=4), add_pooling_layer=False),
    "dinov2": lambda: _made(hf.Dinov2Model, _sized(hf.Dinov2Config, image_size=16, patch_size=4, mlp_ratio=2)),
    "clip vision": lambda: _made(hf.CLIPVisionModel, _sized(hf.CLIPVisionConfig, image_size=16, patch_size=4)),
    "segformer": lambda: _made(hf.SegformerModel, _segformer()),
    "swin": lambda: _made(hf.SwinModel, _swin(), add_pooling_layer=False),
}
LOCAL = {
    "segformer": "Conv2d 'attention.sequence_reduction.sequence_reduction' mixes neighbours on a grid",
    "swin": "is made for windows of 2 positions",
}
"""Attention over a pooled or a windowed grid, and what the refusal of task tokens says of it."""
ADAPT_LAYERS = {"deberta-v2": r"(.*\.)?(value_proj|.*dense)"}
"""The layers to adapt, where the others are applied to a table that all streams share."""
MODELS = {**TEXT, **IMAGE}


def batch_of(name: str, samples: int = 3, length: int = 7, *, padded: bool = True) -> Inputs:
    """Inputs of a model; sentences of all lengths, padded at the end, unless `padded` is false."""
    generator = torch.Generator().manual_seed(samples + 10 * length)
    if name in IMAGE:
        side = 32 if name in LOCAL else 16
        return {"pixel_values": torch.randn(samples, 3, side, side, generator=generator, dtype=torch.float64)}
    words = torch.randint(4, WORDS, (samples, length), generator=generator)
    keep = torch.ones(samples, length, dtype=torch.long)
    if padded:
        keep = (torch.arange(length) < torch.arange(length, length - samples, -1).clamp_min(2)[:, None]).long()
    return {"input_ids": torch.where(keep > 0, words, PAD), "attention_mask": keep}


def takes_attention_mask(trunk: nn.Module) -> bool:
    """Whether a trunk has an attention mask to be given."""
    return "attention_mask" in inspect.signature(trunk.forward).parameters
