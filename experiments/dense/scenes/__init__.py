"""Scenes: small furnished rooms, rendered, with four dense tasks.

`furnishing` decides what is in a `room`, out of `furniture` (`solids` of some `materials`), by `random_draws`, and
`layout` is what it decided; `camera`, `geometry` and `tracing` cast rays into it; `shading` makes the picture and `edges`
its outlines; `rendering` puts them together, `suite` makes a benchmark of them.
"""

from __future__ import annotations

from experiments.dense.scenes.rendering import Scenes, render
from experiments.dense.scenes.solids import Label
from experiments.dense.scenes.suite import render_split, suite

__all__ = ["Label", "Scenes", "render", "render_split", "suite"]
