"""Nuclei: real microscopy with the dense tasks that separate touching nuclei.

`archive` reads the pictures, `tiles` cuts them, `targets` computes what is to be learned, `metrics` measures it; `suite`
makes a benchmark of them.
"""

from __future__ import annotations

from experiments.dense.nuclei.suite import suite

__all__ = ["suite"]
