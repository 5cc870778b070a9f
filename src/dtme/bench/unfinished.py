"""The state of an unfinished training run, written down now and then, so that it goes on where it was interrupted."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dtme._files import written_whole


def write_down(path: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the state of a run with the settings it is made with; the file is there whole or not at all."""
    with written_whole(path) as temporary:
        torch.save({"settings": json.dumps(settings), "run": dict(state)}, temporary)


def read_again(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of an unfinished run of the same settings; `None` where there is none, or the file is damaged."""
    try:
        kept = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return kept["run"] if json.loads(kept["settings"]) == json.loads(json.dumps(settings)) else None
