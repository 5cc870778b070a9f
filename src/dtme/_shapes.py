"""Tensor types that carry their shape, from jaxtyping where it is installed.

jaxtyping is a tool of the tests, not a need of the user's: without it the same annotations mean plain tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Int, Shaped
    except ModuleNotFoundError:

        class _Plain:
            def __class_getitem__(cls, item: tuple[type, str]) -> type:
                return item[0]

        Bool = Float = Int = Shaped = _Plain

__all__ = ["Bool", "Float", "Int", "Shaped"]
