"""What all meters share."""

from __future__ import annotations

from typing import Any, Literal

from torchmetrics import Metric

Protocol = Literal["standard", "invpt"]
"""How something is counted: soundly, or as the field's published tables count it."""


class Meter(Metric):
    """A metric whose states are plain sums and which says by which protocol it counts.

    Args:
        protocol: How it counts.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If the protocol is unknown.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, protocol: Protocol, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if protocol not in ("standard", "invpt"):
            raise ValueError(f'protocol must be "standard" or "invpt", not {protocol!r}')
        self.protocol: Protocol = protocol

    def extra_repr(self) -> str:
        """What the representation says between its brackets."""
        return f"protocol={self.protocol!r}"
