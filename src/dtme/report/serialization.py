"""A report as JSON, and back: what earlier versions did not measure is `None`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtme._files import read_json, read_text, write_json
from dtme.plan.cost import ModelFlops
from dtme.report.validation import CHANCE, PAIRS, check_fields

FORMAT = "dtme.report"
_LATER = (*CHANCE, "gradient_size", "spectrum")
"""What reports of earlier versions lack."""
_NOT_A_NUMBER = ("range_chance", "null_chance", "gradient_size")
"""Where what is missing is no number; elsewhere it is an infinite half-width."""


def write_fields(path: Path, fields: Mapping[str, Any]) -> None:
    """Write the fields of a report, whole or not at all."""
    data: dict[str, Any] = {"format": FORMAT, "version": 1}
    for name, value in fields.items():
        if isinstance(value, ModelFlops):
            data[name] = value.to_dict()
        else:
            data[name] = _finite(value.tolist()) if isinstance(value, Tensor) else value
    write_json(path, data, allow_nan=False)


def read_fields(path: Path, defaults: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a report that `write_fields` wrote.

    Args:
        path: The file.
        defaults: Of fields that may be missing.
        names: Of all fields.

    Raises:
        ValueError: The file is no report.
    """
    data = {**defaults, **dict.fromkeys(_LATER), **read_json(read_text(path), FORMAT, str(path))}
    try:
        fields = {name: _restored(name, data[name]) for name in names}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{path}: a field of the report is missing or malformed ({error!r}).") from error
    check_fields(fields, str(path))
    return fields


def _finite(value: Any) -> Any:
    """JSON knows no infinity; a half-width that one sample cannot give is `null`."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None


def _restored(name: str, value: Any) -> Any:
    if name in _LATER:
        return None if value is None else _tensor(name, value)
    if name in PAIRS:
        return _tensor(name, value)
    if name == "pairing":
        return tuple(tuple(row) for row in value)
    if name == "flops":
        return value if isinstance(value, str) else ModelFlops.from_dict(value)
    return tuple(value) if isinstance(value, list) else value


def _tensor(name: str, value: Any) -> Tensor:
    missing = math.nan if name in _NOT_A_NUMBER else math.inf
    return torch.tensor(_filled(value, missing), dtype=torch.float64)


def _filled(value: Any, missing: float) -> Any:
    if isinstance(value, list):
        return [_filled(item, missing) for item in value]
    return missing if value is None else value
