"""Whether the fields of a report can be what an analysis measured: a file may come from anywhere, and plans follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dtme.plan.cost import BlockFlops, ModelFlops
from dtme.plan.plan import MOST_BLOCKS, MOST_TASKS
from dtme.plan.rates import SPECTRUM

PAIRS = ("range_rate", "null_rate", "range_halfwidth", "null_halfwidth")
CHANCE = ("range_chance", "null_chance", "range_chance_halfwidth", "null_chance_halfwidth")
_ROUNDING = 1e-6
_MOST_FLOPS = 10**24


def check_fields(fields: Mapping[str, Any], source: str) -> None:
    """Refuse fields that no analysis gives.

    Args:
        fields: Of a report, by name; rates as tensors.
        source: Names the file in errors.

    Raises:
        ValueError: A field has another kind, another shape, or values that its meaning excludes.
    """
    try:
        _check_names(fields)
        blocks, tasks = len(fields["blocks"]), len(fields["tasks"])
        for name in (*PAIRS, *CHANCE):
            if fields[name] is not None:
                _check_pairs(name, fields[name], (blocks, tasks, tasks))
        sizes = fields["gradient_size"]
        if sizes is not None:
            _check_shape("gradient_size", sizes, (blocks, tasks))
            _refuse_unless(bool(((sizes >= 0) | sizes.isnan()).all()), "gradient_size", "sizes of at least 0", sizes)
        energy = fields["spectrum"]
        if energy is not None:
            _check_shape("spectrum", energy, (blocks, SPECTRUM))
            _refuse_unless(bool(((energy >= 0) & (energy <= 1)).all()), "spectrum", "shares of the strongest", energy)
        _check_numbers(fields, blocks)
        if isinstance(fields["flops"], ModelFlops):
            _check_flops(fields["flops"])
    except _UnlikelyError as error:
        raise ValueError(f"{source}: {error}") from None


class _UnlikelyError(Exception):
    """What is wrong with a field."""


def _refuse_unless(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise _UnlikelyError(f"{name} is {str(found)[:200]}, expected {expected}.")


def _check_shape(name: str, found: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(found.shape) != shape:
        raise _UnlikelyError(f"{name} has shape {tuple(found.shape)}, expected {shape}.")


def _check_names(fields: Mapping[str, Any]) -> None:
    for name, most in (("tasks", MOST_TASKS), ("blocks", MOST_BLOCKS)):
        found = fields[name]
        _refuse_unless(_are_texts(found) and len(set(found)) == len(found) > 0, name, "names, each once", found)
        _refuse_unless(len(found) <= most, name, f"at most {most} names", f"{len(found)} names")
    for name in ("undecided", "notes"):
        _refuse_unless(_are_texts(fields[name]), name, "texts", fields[name])
    strange = [name for name in fields["undecided"] if name not in fields["blocks"]]
    _refuse_unless(not strange, "undecided", "some of the blocks", strange)
    pairing, tasks = fields["pairing"], len(fields["tasks"])
    square = len(pairing) == tasks and all(_are_texts(row) and len(row) == tasks for row in pairing)
    _refuse_unless(square, "pairing", f"{tasks} rows of {tasks} texts", pairing)


def _are_texts(found: Any) -> bool:
    return isinstance(found, tuple) and all(isinstance(one, str) for one in found)


def _check_pairs(name: str, found: Tensor, shape: tuple[int, ...]) -> None:
    _check_shape(name, found, shape)
    unknown = found.isnan()
    known = torch.where(unknown, 0.0, found)
    mirrored = torch.where(found.isinf() | found.mT.isinf(), 0.0, known - known.mT).abs() <= _ROUNDING
    alike = (unknown == unknown.mT) & (found.isinf() == found.mT.isinf()) & mirrored
    _refuse_unless(bool(alike.all()), name, "the same for (a, b) as for (b, a)", found.tolist())
    if "halfwidth" in name:
        _refuse_unless(bool((known >= 0).all()), name, "half-widths of at least 0", found.tolist())
        return
    rates = bool(((known >= 0) & (known <= 1 + _ROUNDING)).all())
    _refuse_unless(rates and ("chance" in name or not unknown.any()), name, "rates from 0 to 1", found.tolist())
    if "chance" not in name:
        diagonal = found.diagonal(dim1=1, dim2=2)
        _refuse_unless(not diagonal.any(), name, "0 for a task and itself", diagonal.tolist())


def _check_numbers(fields: Mapping[str, Any], blocks: int) -> None:
    for name in ("widths", "range_rank", "zero_share"):
        found, kind = fields[name], (int, float) if name == "zero_share" else int
        _refuse_unless(isinstance(found, tuple) and len(found) == blocks, name, f"{blocks} numbers", found)
        right = all(isinstance(one, kind) and not isinstance(one, bool) and 0 <= one < 2**31 for one in found)
        _refuse_unless(right, name, "numbers from 0 on", found)
    wide = [rank <= width for rank, width in zip(fields["range_rank"], fields["widths"], strict=True)]
    _refuse_unless(all(wide), "range_rank", "at most the width of each block", fields["range_rank"])
    _refuse_unless(all(share <= 1 for share in fields["zero_share"]), "zero_share", "shares", fields["zero_share"])
    samples = fields["samples"]
    _refuse_unless(type(samples) is int and 0 <= samples < 2**63, "samples", "a whole number", samples)
    for name, most in (("variance_ratio", 1e30), ("level", 1.0)):
        found = fields[name]
        right = isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < most
        _refuse_unless(right, name, f"a number above 0 and below {most:g}", found)


def _check_flops(flops: ModelFlops) -> None:
    _check_count("flops.once", flops.once)
    for name, block in flops.blocks.items():
        _check_block(f"flops of {name}", block)


def _check_block(name: str, block: BlockFlops) -> None:
    for own in ("stream", "shared", "behind"):
        _check_count(f"{name}, {own}", getattr(block, own))
    for own in ("task_tokens", "updates"):
        pair = getattr(block, own)
        _refuse_unless(pair is None or len(pair) == 2, f"{name}, {own}", "two numbers", pair)
        for one in pair or ():
            _check_count(f"{name}, {own}", one)
    told = isinstance(block.refusals, dict) and _are_texts((*block.refusals, *block.refusals.values()))
    _refuse_unless(told, f"{name}, refusals", "sentences", block.refusals)
    _refuse_unless(isinstance(block.last, bool), f"{name}, last", "true or false", block.last)
    for own, part in block.parts.items():
        _check_block(f"{name}, {own}", part)


def _check_count(name: str, found: Any) -> None:
    right = isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found < _MOST_FLOPS
    _refuse_unless(right, name, "a count", found)
