"""`nn.MultiheadAttention` computed in the open: the same attention, by projections that something can be added to.

PyTorch's own uses its weights without calling a layer, and so offers no place where a row could get weights of its own.
Here the forward of one attention module, and of that object alone, is exchanged; its class, parameters and hooks stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtme._shapes import Float, Shaped

Project = Callable[[str, Tensor, Tensor, slice], Tensor]
"""`project(name, inputs, outputs, rows)`: what is to stand for the outputs of some rows of a projection's weight."""


@dataclass
class Opened:
    """An attention module whose forward is `attend`, for one of those who add something to its projections."""

    attention: nn.MultiheadAttention
    project: Project

    def remove(self) -> None:
        """Add it no longer; behind the last, give the module back the forward of its class."""
        forward: Any = vars(self.attention).get("forward")
        if not isinstance(forward, partial) or forward.func is not attend:
            return
        others = tuple(project for project in forward.args[1] if project is not self.project)
        if others:
            self.attention.forward = partial(attend, self.attention, others)
        else:
            del self.attention.forward


def open_attention(attention: nn.MultiheadAttention, project: Project) -> Opened:
    """Let an attention module call `project` for each of its projections.

    Example:
        >>> attention = nn.MultiheadAttention(4, 2).eval()
        >>> x = torch.randn(3, 1, 4)
        >>> expected, _ = attention(x, x, x)
        >>> opened = open_attention(attention, lambda name, inputs, outputs, rows: outputs)
        >>> torch.allclose(attention(x, x, x)[0], expected, atol=1e-6)
        True
        >>> opened.remove()
    """
    forward: Any = vars(attention).get("forward")
    others = forward.args[1] if isinstance(forward, partial) and forward.func is attend else ()
    attention.forward = partial(attend, attention, (*others, project))
    return Opened(attention, project)


def is_open_to(attention: nn.MultiheadAttention) -> bool:
    """Whether the forward of an attention module is PyTorch's, or `attend` already, and no one else's."""
    own = vars(attention).get("forward")
    if own is not None:
        return isinstance(own, partial) and own.func is attend
    return type(attention).forward is nn.MultiheadAttention.forward


def attend(
    attention: nn.MultiheadAttention,
    projects: tuple[Project, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Shaped[Tensor, "b s"] | None = None,
    need_weights: bool = True,
    attn_mask: Shaped[Tensor, "..."] | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`nn.MultiheadAttention.forward`, with the same arguments and results.

    `projects` are called one after the other, each with what the one before has made of the outputs.
    """

    def project(name: str, inputs: Tensor, outputs: Tensor, rows: slice) -> Tensor:
        for add in projects:
            outputs = add(name, inputs, outputs, rows)
        return outputs

    if query.ndim != 3:
        raise ValueError(
            f"adapt: attention is called with a query {tuple(query.shape)}; one with a dimension of samples is wanted."
        )
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    q, k, v = _projected(attention, project, query, key, value)
    if not attention.batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    causal = is_causal and key_padding_mask is None and not need_weights  # else the mask it hints at is taken
    bias = _added_to_scores(attention, q, None if causal else attn_mask, key_padding_mask)
    more = 0
    if attention.bias_k is not None and attention.bias_v is not None:
        k, v = (torch.cat([x, b.expand(len(x), -1, -1)], 1) for x, b in ((k, attention.bias_k), (v, attention.bias_v)))
        more += 1
    if attention.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        more += 1
    if bias is not None:
        bias = F.pad(bias, (0, more))
    q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    dropout = attention.dropout if attention.training else 0.0
    if need_weights:
        scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.mT
        weights = F.dropout((scores if bias is None else scores + bias).softmax(-1), dropout)
        heads = weights @ v
    else:
        weights, heads = None, F.scaled_dot_product_attention(q, k, v, bias, dropout, causal)
    outputs = heads.transpose(1, 2).flatten(2)
    outputs = outputs if attention.batch_first else outputs.transpose(0, 1)
    layer = attention.out_proj
    outputs = project("out_proj", outputs, F.linear(outputs, layer.weight, layer.bias), slice(None))
    return outputs, weights.mean(1) if weights is not None and average_attn_weights else weights


def _projected(
    attention: nn.MultiheadAttention, project: Project, query: Tensor, key: Tensor, value: Tensor
) -> list[Tensor]:
    weight, bias, p = attention.in_proj_weight, attention.in_proj_bias, attention.embed_dim
    if weight is not None and query is key and key is value:
        return list(project("in_proj", query, F.linear(query, weight, bias), slice(None)).chunk(3, -1))
    projected = []
    for place, (name, inputs) in enumerate((("q_proj", query), ("k_proj", key), ("v_proj", value))):
        rows = slice(place * p, (place + 1) * p)
        own_bias = None if bias is None else bias[rows]
        if weight is None:
            outputs = F.linear(inputs, getattr(attention, f"{name}_weight"), own_bias)
            projected.append(project(name, inputs, outputs, slice(None)))
        else:
            projected.append(project("in_proj", inputs, F.linear(inputs, weight[rows], own_bias), rows))
    return projected


def _added_to_scores(
    attention: nn.MultiheadAttention,
    query: Float[Tensor, "b l p"],
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
) -> Float[Tensor, "..."] | None:
    """Both masks as what they add to the scores `(b, heads, l, s)`, where True hides."""
    parts = []
    if attn_mask is not None:
        mask = _additive(attn_mask, query)
        parts.append(mask.unflatten(0, (-1, attention.num_heads)) if mask.ndim == 3 else mask)
    if key_padding_mask is not None:
        parts.append(_additive(key_padding_mask, query)[:, None, None, :])
    return sum(parts[1:], parts[0]) if parts else None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
    return mask.to(like.dtype)
