"""Where things derived from a data set are kept: with the user, never beside the data."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder of the cache: `$DTME_CACHE`, or `~/.cache/dtme`."""
    return Path(os.environ.get("DTME_CACHE") or Path.home() / ".cache" / "dtme")
