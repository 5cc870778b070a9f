"""Ablations of the streams that carry most, copies of blocks: how fast they learn, how many and from when on."""

from __future__ import annotations

from dataclasses import replace

from experiments.ablations.ablation import Ablation, of_table
from experiments.dense.alternatives import own_blocks
from experiments.dense.branch_point import BranchPoint
from experiments.dense.methods import Method
from experiments.methods.placements import beside_updates, from_the_mlp_on, last_blocks

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


def _last_beside_even_weights(count: int, moment: float) -> Method:
    branch = BranchPoint() if moment == 0 else BranchPoint(moment, of="MT, even gradients")
    copies = _last(count, moment)
    says = f"{copies.says}; losses weighted so that token gradients are equally large at the start"
    return replace(copies, name=f"{copies.name}, even gradients", says=says, weights="even", branch=branch)


def _from_the_mlp_beside_even_weights(count: int) -> Method:
    return Method(
        f"own last {count} but the first attention, rate 3, even gradients",
        f"copies of the last {count} blocks per task but the attention of the first of them, in streams, at three times the "
        "trunk's rate; losses weighted so that token gradients are equally large at the start",
        from_the_mlp_on(count),
        weights="even",
    )


_MLP = r"mlp\..*"


def _beside(where: str, behind_norms: bool) -> Method:
    return Method(
        f"Adapt MLP r12 last block, TM {where}",
        f"rank-12 updates in the MLP of the last block, and modulators {where}",
        beside_updates(rank=12, layers=_MLP, behind_norms=behind_norms),
    )


OF_COPIES = (
    Ablation(
        "up-to-copies",
        "from rank-12 updates in the MLP of the last block to a copy of the block",
        "contents",
        (
            ("MLP, rank 12", of_table("Adapt MLP r12 last block")[0]),
            ("and TM at the entry", _beside("at its entry", False)),
            ("and TM behind the norms", _beside("behind its norms", True)),
            (
                "MLP, rank 24",
                Method(
                    "Adapt MLP r24 last block",
                    "updates of full rank in the MLP of the last block",
                    last_blocks(1, rank=24, layers=_MLP),
                ),
            ),
            ("copy", _LAST_FAST),
        ),
    ),
    Ablation(
        "parting",
        "streams that part at the last block or at its MLP",
        "contents, from",
        (
            ("rank 12, block", of_table("Adapt MLP r12 last block")[0]),
            ("rank 12, MLP", of_table("Adapt r12 last MLP")[0]),
            ("copy, block", _LAST_FAST),
            ("copy, MLP", of_table("own last MLP, rate 3")[0]),
        ),
    ),
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
    Ablation(
        "even-copies",
        "copies of the last blocks beside even weights: what each budget buys",
        "blocks, from",
        (
            ("none", of_table("MT, even gradients")[0]),
            ("MLP, 0 %", of_table("own last MLP, rate 3, even gradients")[0]),
            ("1, 50 %", _last_beside_even_weights(1, 0.5)),
            ("1, 0 %", of_table("own last block, rate 3, even gradients")[0]),
            ("2, first MLP, 0 %", _from_the_mlp_beside_even_weights(2)),
            ("2, 0 %", _last_beside_even_weights(2, 0.0)),
            ("3, 0 %", _last_beside_even_weights(3, 0.0)),
        ),
    ),
)
