"""The products that run in a context, counted by the formulas of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@contextmanager
def plain_products() -> Iterator[None]:
    """Attention as the products it is made of, which torch's counter knows on every device, while the context lasts."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Products(TorchDispatchMode):
    """Counts products by the formulas of torch's `FlopCounterMode`, and tells of every operation what it costs.

    The counter itself would hook into all modules there are, which compiled ones complain of.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Would load all of torch.compile at the first analysis; where a mode is on, nothing is compiled anyway."""
        return False

    def __init__(self, tell: Callable[[int, Any, Any], None] = lambda flops, arguments, output: None) -> None:
        super().__init__()
        self.tell = tell
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", func)
        decompose = getattr(func, "decompose", None)
        if packet not in flop_registry and decompose is not None and torch.is_inference_mode_enabled():
            with self:  # there linear layers come as they are, and not as products
                parts = decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        flops = flop_registry[packet](*args, **kwargs, out_val=output) if packet in flop_registry else 0
        self.total += flops
        self.tell(flops, (args, kwargs), output)
        return output
