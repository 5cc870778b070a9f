"""Ablations of the streams that carry most, copies of blocks: how fast they learn, how many and from when on."""

from __future__ import annotations

from dataclasses import replace

from dtme.bench.ablations.varied import Ablation, of_table
from dtme.bench.branch_point import BranchPoint
from dtme.bench.methods import Method
from dtme.bench.rivals import own_blocks

_LAST, _LAST_FAST = of_table("own last block", "own last block, rate 3")


def _at_rate(value: float) -> Method:
    return replace(
        _LAST,
        name=f"{_LAST.name}, rate {value:g}",
        says=f"{_LAST.says}, at {value:g} times the trunk's rate",
        rate="low_rank_rate",
        settings={"low_rank_rate": value},
    )


def _last(count: int, moment: float) -> Method:
    return Method(
        f"own last {count}, rate 3, {moment:.0%}",
        f"copies of the last {count} blocks per task, at three times the trunk's rate, after {moment:.0%} of the steps",
        change=own_blocks(count),
        rate="low_rank_rate",
        branch=BranchPoint(moment),
    )


OF_COPIES = (
    Ablation(
        "copies-rate",
        "learning rate of copies of the last block",
        "multiple of the trunk's",
        (("0.3", _at_rate(0.3)), ("1", _LAST), ("3", _LAST_FAST), ("10", _at_rate(10.0))),
    ),
    Ablation(
        "copies-moment",
        "copies of the last blocks for half as much time again: one from the start, or more of them later",
        "blocks, from",
        (
            ("1, 0 %", _LAST_FAST),
            ("2, 40 %", _last(2, 0.4)),
            ("3, 60 %", _last(3, 0.6)),
            ("2, 0 %", _last(2, 0.0)),
            ("3, 0 %", _last(3, 0.0)),
        ),
    ),
)
