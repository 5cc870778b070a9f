"""What a block takes, found by trying it: task tokens, low-rank updates, and streams behind its last part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtme._wrappers import named_modules
from dtme.attach.apply import apply
from dtme.plan.plan import Plan
from dtme.trunk.blocks import runs_last
from dtme.trunk.call import BlockCall
from dtme.trunk.linear_layers import linear_layers
from dtme.trunk.output import tokens_of
from dtme.trunk.probe import make_twin

_TASKS = ("one", "other")
_SAMPLES = 2
"""Samples a block is tried on: with one, what is made once for all samples could be taken for that sample's own."""


class _Alone(nn.Module):
    """A twin of a block with its call, and behind it two branches."""

    def __init__(self, block: nn.Module, call: BlockCall) -> None:
        super().__init__()
        self.block = make_twin(block)
        self.heads = nn.ModuleDict({task: nn.Identity() for task in _TASKS})
        self.call = call

    def forward(self) -> list[Tensor]:
        call = self.call.with_own_caches()
        tokens = tokens_of(self.block(*call.args, **call.kwargs), call.tokens, "block")
        if not hasattr(tokens, "_streams"):
            raise RuntimeError("'block' makes one tensor of the streams in it.")
        return [head(tokens) for head in self.heads.values()]


def try_insert(block: nn.Module, call: BlockCall, kind: str, part: str = "") -> str | None:
    """Run a twin of a block on two streams of a few samples, with an insert for each.

    Args:
        block: Without insert; it is left as it is.
        call: What it is called with.
        kind: The field of the plan: `"expand"`, `"adapt"`, `"modulate"`.
        part: A part of the block that has the inserts instead of it.

    Returns:
        Why it does not run, in the words of the error, which calls it `'block'`; `None` where it does.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
        >>> call = BlockCall.read(layer, (torch.ones(3, 4, 8),), {})
        >>> try_insert(layer, call, "adapt"), try_insert(layer, call, "adapt", "norm2")
        (None, "plan.adapt: block 'block.norm2' has no linear layer to adapt that matches adapt_layers=None; it has none.")
    """
    devices = {tensor.device.index for tensor in block.parameters() if tensor.device.type == "cuda"}
    place = f"block.{part}" if part else "block"
    placed: dict[str, Any] = {kind: {place: _TASKS}}
    try:  # with gradients, as in training, where more is refused: to write to what streams are views of
        with torch.random.fork_rng(sorted(devices)), torch.enable_grad():
            alone = _Alone(block, _take_first(call)).eval()
            apply(alone, Plan(_TASKS, rank=1, **placed))
            alone()
    except Exception as why:
        return str(why) or type(why).__name__
    return None


def _take_first(call: BlockCall) -> BlockCall:
    """The call on its first samples."""
    rows, few = call.rows, min(call.rows, _SAMPLES)

    def first(held: Tensor, dim: int) -> Tensor:
        return held.narrow(dim, 0, held.shape[dim] // rows * few)

    return call.change_rows(first, rows).with_tokens(first(call.tokens, call.layout.batch))


def find_late_part(block: nn.Module) -> str | None:
    """The outermost module of a block that holds its last two linear layers or more, but not all of its matrices: the MLP.

    Returns:
        Its name in the block; `None` where there is no such module, as where the layers of the MLP are members of the block.

    Example:
        >>> find_late_part(nn.ModuleDict({"convolution": nn.Linear(4, 4), "attention": nn.MultiheadAttention(4, 2)}))
        'attention'
        >>> print(find_late_part(nn.TransformerEncoderLayer(4, 2)))
        None
    """
    matrices = sum(weight.ndim > 1 for weight in block.parameters())
    for name, part in named_modules(block):
        own = sum(weight.ndim > 1 for weight in part.parameters())
        takes_inserts = type(part).forward is not nn.Module.forward and not isinstance(part, nn.Sequential)
        if name and takes_inserts and own < matrices and runs_last(name, block) and _count_linear_layers(part) > 1:
            return name
    return None


def _count_linear_layers(part: nn.Module) -> int:
    try:
        return len(linear_layers(part))
    except ValueError:  # an attention that takes no updates
        return 0
