"""Scenes: small furnished rooms, rendered, with four dense tasks.

`layout` decides what is in a room, out of `furniture` and `materials`; `camera` and `geometry` cast rays into it;
`shading` makes the picture and `edges` its outlines; `rendering` puts them together, `suite` makes a benchmark of them.
"""

from __future__ import annotations

from dtme.bench.scenes.furniture import Label
from dtme.bench.scenes.rendering import Scenes, render
from dtme.bench.scenes.suite import render_split, suite

__all__ = ["Label", "Scenes", "render", "render_split", "suite"]
