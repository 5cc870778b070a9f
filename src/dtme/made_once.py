"""Masks are folded and extended once in a pass, and not again in every block that is given the same ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dtme.eager import is_transformed

MOST = 8
"""Tensors kept at one time, the last ones made: what only one block is given is not to pile up over a pass."""


@dataclass
class MadeOnce:
    """What was made of tensors in the pass that is running; nothing outside one, nor in compiled code, whose compiler sees to it.

    Attributes:
        running: Whether a pass is.
    """

    running: bool = False
    _made: dict[Hashable, tuple[Tensor | None, Tensor, int]] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type[MadeOnce], tuple[()]]:
        """Copies of a model begin with nothing."""
        return MadeOnce, ()

    def begin(self) -> None:
        """A pass begins."""
        self._made.clear()
        self.running = True

    def end(self) -> None:
        """It has ended, well or not: let go of every tensor."""
        self._made.clear()
        self.running = False

    def once(self, given: Tensor | None, what: Any, make: Callable[[], Tensor]) -> Tensor:
        """What `make` makes of a tensor, made anew only where the tensor, or what was made of it, has been written to since.

        Args:
            given: The tensor, or `None` where it takes none. Of one that needs a gradient nothing is kept: checkpointing repeats
                each block by itself.
            what: All else that the result depends on.
            make: Makes it.

        Example:
            >>> import torch
            >>> made, mask = MadeOnce(running=True), torch.ones(2)
            >>> twice = [made.once(mask, "negated", lambda: -mask) for _ in range(2)]
            >>> twice[0] is twice[1], made.once(mask.zero_(), "negated", lambda: -mask) is twice[0]
            (True, False)
        """
        if is_transformed() or not self.running:
            return make()
        if given is not None and (type(given) is not Tensor or given.requires_grad or given.is_inference()):
            return make()
        # The tensor is kept beside what was made of it, so that no other gets its id meanwhile.
        key = (None, 0, what) if given is None else (id(given), given._version, what)
        found = self._made.pop(key, None)
        if found is None or found[1]._version != found[2]:
            own = make()
            if own.is_inference():
                return own
            found = given, own, own._version
        self._made[key] = found
        while len(self._made) > MOST:
            del self._made[next(iter(self._made))]
        return found[1]
