"""The kinds of maps there are: how each is resized, flipped, padded, and what says "nothing is known here" in it."""

from __future__ import annotations

import math
from typing import Literal

Kind = Literal["classes", "depth", "normals", "values"]
"""What a target holds.

- `classes`: whole numbers in uint8, `(h, w)`; 255 is unknown. Masks and edges, too, with the classes 0 and 1.
- `depth`: metres in float32, `(h, w)`; 0 is unknown.
- `normals`: unit vectors in float32, `(3, h, w)`; the zero vector is unknown.
- `values`: any numbers in float32, `(channels, h, w)`; NaN is unknown.
"""

UNKNOWN: dict[Kind, float] = {"classes": 255, "depth": 0.0, "normals": 0.0, "values": math.nan}
"""Per kind, what an unknown pixel holds."""
