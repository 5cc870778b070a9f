"""The state of an unfinished training run, written down now and then, so that it goes on where it was interrupted.

A state carries a digest: one flipped bit in it would give other results without a word.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dtme._files import written_whole

_HEAD = re.compile(rb"dtme\.state 1 ([0-9a-f]{64})\n")
_LENGTH = len(b"dtme.state 1 ") + 64 + 1
_DAMAGED = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError)
"""What torch raises where a file is none of its own, or cut short."""


class DamagedStateError(ValueError):
    """A file does not hold the state that was written to it."""


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run, whole or not at all, with its digest."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getbuffer()
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(b"dtme.state 1 " + hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)


def read_state(path: Path, device: str | None = None) -> dict[str, Any]:
    """A state that `write_state` wrote, or an earlier version without a digest.

    Args:
        path: Of the file.
        device: Where its tensors go, if not to where they were.

    Raises:
        FileNotFoundError: There is none.
        DamagedStateError: It is not what was written; the message names the file.
    """
    content = path.read_bytes()
    head = _HEAD.match(content)
    if head is None and not content.startswith(b"PK"):
        raise DamagedStateError(f"{path} is damaged, or no state of a run: it does not begin like one.")
    if head is None:
        logging.getLogger("dtme").info("%s was written before states had digests.", path)
    elif hashlib.sha256(memoryview(content)[_LENGTH:]).hexdigest().encode() != head[1]:
        raise DamagedStateError(f"{path} is damaged: it does not hold what was written (its digest differs).")
    try:
        found = torch.load(io.BytesIO(content[_LENGTH:] if head else content), weights_only=True, map_location=device)
    except _DAMAGED as error:
        raise DamagedStateError(f"{path} is damaged, or was cut short ({error}).") from error
    if not isinstance(found, dict):
        raise DamagedStateError(f"{path} holds a {type(found).__name__}, no state of a run.")
    return found


def is_whole(path: Path) -> bool:
    """Whether a state is there and is what was written; where it is not, a warning names the file."""
    try:
        read_state(path)
    except (FileNotFoundError, DamagedStateError) as error:
        what = error if isinstance(error, DamagedStateError) else f"{path} is missing."
        warnings.warn(f"{what} What led to it is done anew.", UserWarning, stacklevel=2)
        return False
    return True


def write_down(path: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the state of a run with the settings it is made with; the file is there whole or not at all."""
    write_state(path, {"settings": json.dumps(settings), "run": dict(state)})


def read_again(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of an unfinished run of the same settings; `None` where there is none.

    Or where it is damaged: then a warning names the file, and the run begins anew.
    """
    try:
        kept = read_state(path, "cpu")
        same = json.loads(kept["settings"]) == json.loads(json.dumps(settings))
        return kept["run"] if same else None
    except FileNotFoundError:
        return None
    except (DamagedStateError, KeyError, TypeError, ValueError, OSError) as error:
        what = (
            str(error)
            if isinstance(error, DamagedStateError)
            else f"{path} is no state of an unfinished run ({error!r})."
        )
        warnings.warn(f"{what} That training begins anew.", UserWarning, stacklevel=2)
        return None
