"""The products of a pass: what each costs, what its factors are made of, and what they add up to in a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from dtme._pytree import tensors_of
from dtme._shapes import Float
from dtme.plan.cost import BlockFlops
from dtme.trunk.linear_layers import linear_layers

TOKENS = 0
"""Stands for tokens in an origin; a weight is told by the address of its storage."""
_ADDED_TO = (torch.ops.aten.addmm, torch.ops.aten.baddbmm)
"""Products whose first argument is what they are added to."""

Origin = frozenset[int]
"""What a tensor is made of: tokens, or else weights, or nothing that is followed."""


class Trail:
    """Follows what operations make of some tensors, by the storages that they read and write.

    Example:
        >>> trail, tokens, weight = Trail(), torch.ones(3), torch.ones(3)
        >>> trail.mark(tokens, TOKENS)
        >>> trail.mark(weight, 7)
        >>> sorted(trail.origin(tokens[:1])), sorted(trail.origin([weight, None])), sorted(trail.origin([weight, tokens]))
        ([0], [7], [0])
    """

    def __init__(self) -> None:
        self._storages: dict[int, tuple[StorageWeakRef, Origin]] = {}

    def mark(self, values: Any, *made_of: int) -> None:
        """Say what the tensors among some values are made of."""
        for tensor in tensors_of(values):
            if tensor.layout == torch.strided:  # the reference keeps the address from being used again
                reference = StorageWeakRef(tensor.untyped_storage())
                self._storages[address_of(tensor)] = (reference, frozenset(made_of))

    def origin(self, values: Any) -> Origin:
        """What the tensors among some values are made of."""
        known = (self._storages.get(address_of(own)) for own in tensors_of(values) if own.layout == torch.strided)
        found: Origin = frozenset().union(*(entry[1] for entry in known if entry is not None))
        return frozenset([TOKENS]) if TOKENS in found else found

    def follow(self, inputs: Any, output: Any) -> Origin:
        """Mark what an operation makes of followed tensors, and tell what that is made of."""
        origin = self.origin(inputs)
        if origin:
            self.mark(output, *origin)
        return origin


def attention_flops(
    query: Float[Tensor, "b h n d"], key: Float[Tensor, "b g m d"], value: Float[Tensor, "b g m c"]
) -> int:
    """Of the two products of attention, whichever kernel computes them; torch knows the formula for some.

    Example:
        >>> attention_flops(torch.ones(2, 4, 5, 8), torch.ones(2, 1, 7, 8), torch.ones(2, 1, 7, 3))
        6160
    """
    rows = query.numel() // query.shape[-1]
    return 2 * rows * key.shape[-2] * (key.shape[-1] + value.shape[-1])


def address_of(tensor: Tensor) -> int:
    """The address of a tensor's storage, which all its views share."""
    return tensor.untyped_storage()._cdata


class Products(TorchDispatchMode):
    """Counts products by the formulas of torch's `FlopCounterMode`, and tells of every operation.

    The counter itself would hook into all modules there are, which compiled ones complain of.

    Args:
        tell: Is given an operation's FLOPs, its factors where it is a product, its arguments and its output.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Would load all of torch.compile at the first analysis; where a mode is on, nothing is compiled anyway."""
        return False

    def __init__(self, tell: Callable[[int, tuple[Any, ...], Any, Any], None]) -> None:
        from torch.utils.flop_counter import flop_registry  # loads triton where it is installed

        super().__init__()
        self.tell, self.formulas = tell, flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", func)
        if packet not in self.formulas and hasattr(func, "decompose") and torch.is_inference_mode_enabled():
            with self:  # there linear layers come as they are, and not as products
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        flops = 0
        if "scaled_dot_product" in str(packet) and "backward" not in str(packet):
            flops = attention_flops(*args[:3])
        elif packet in self.formulas:
            flops = self.formulas[packet](*args, **kwargs, out_val=output)
        self.tell(flops, args[1:3] if packet in _ADDED_TO else args[:2], (args, kwargs), output)
        return output


@dataclass
class Tally:
    """What one block, or a part of one, has computed so far.

    Attributes:
        module: Itself.
        length: Tokens of a sample in the run just now.
        runs: How often it ran.
        stream: FLOPs made of tokens.
        shared: Of all else.
        behind: Made of tokens behind the block and before the next, or in the block behind this part.
        task_tokens: `(a, b)`: n task tokens add `a n + b n^2`.
        updates: `(a, b)`: updates of rank r add `r (a + b n)`.
    """

    module: nn.Module
    length: int = 1
    runs: int = 0
    stream: int = 0
    shared: int = 0
    behind: int = 0
    task_tokens: list[float] = field(default_factory=lambda: [0.0, 0.0])
    updates: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def __post_init__(self) -> None:
        try:
            self.weights = [layer.weight for layer in linear_layers(self.module).values()]
        except ValueError:  # an attention that takes no updates
            self.weights = []
        self.update = {address_of(weight): sum(weight.shape) / weight.numel() for weight in self.weights}

    def begin(self, length: int) -> None:
        """A run begins, on so many tokens of a sample."""
        self.runs, self.length = self.runs + 1, length

    def add(self, flops: int, factors: Sequence[Origin]) -> None:
        """Add a product: with n tokens more than N it grows as `(1 + n / N)^k`, k of its factors being made of tokens."""
        tokens = sum(TOKENS in factor for factor in factors)
        if not tokens:
            self.shared += flops
            return
        self.stream += flops
        self.task_tokens[0] += tokens * flops / self.length
        self.task_tokens[1] += (tokens - 1) * flops / self.length**2
        update = flops * sum(self.update.get(weight, 0.0) for factor in factors for weight in factor)
        self.updates[0] += update
        self.updates[1] += update / self.length

    def tell(self, refusals: dict[str, str], parts: dict[str, BlockFlops], *, last: bool = False) -> BlockFlops:
        """What was counted, but for what the block takes none of."""
        task_tokens, updates = (
            None if name in refusals else (round(found[0]), round(found[1]))
            for name, found in (("expand", self.task_tokens), ("adapt", self.updates))
        )
        return BlockFlops(self.stream, self.shared, self.behind, task_tokens, updates, refusals, parts, last=last)
