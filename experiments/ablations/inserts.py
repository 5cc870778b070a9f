"""Ablations of our own: what inserts need, where and when they go, what streams carry."""

from __future__ import annotations

from experiments.ablations.ablation import Ablation, of_table, setting, varied
from experiments.ablations.paper import FRACTIONS, MOMENTS
from experiments.dense.branch_point import BranchPoint
from experiments.dense.methods import Method
from experiments.methods.placements import after_norm, by_conflict, last_blocks, one_block, within_cost

_LAST_HALF = "in the last half of the blocks"
_TM_LAST_HALF = Method("TM last half", f"modulators {_LAST_HALF}", last_blocks(None, modulation=True))
_ATTENTION, _MLP = r"attn\..*", r"mlp\..*"
_FIRST_ROUND = dict(FRACTIONS)["1/3"]

OF_INSERTS = (
    Ablation(
        "moment-adapt",
        "when rank-4 updates are put into the last block",
        "share of the steps before",
        varied("Adapt last block", tuple(MOMENTS), "0 %", lambda value: {"branch": BranchPoint(MOMENTS[value])}),
    ),
    Ablation(
        "rounds",
        "TM+TE planned at once, or a third of its blocks at half time",
        "planned",
        (
            ("at once", of_table("TM+TE")[0]),
            ("the first round alone", _FIRST_ROUND),
            (
                "in two rounds",
                Method(
                    "TM+TE in two rounds",
                    "TM+TE in a third of the blocks, joined at half time by those that conflict most then",
                    by_conflict(modulation=True, expansion=True),
                    branch=BranchPoint(0.5, of=_FIRST_ROUND.name),
                ),
            ),
        ),
    ),
    Ablation(
        "tokens",
        "task tokens per task and block",
        "tokens",
        varied("TE", ("1", "2", "4", "8"), "1", lambda value: {"plan": by_conflict(expansion=True, tokens=int(value))}),
    ),
    Ablation(
        "insert-rate",
        "learning rate of modulators and task tokens",
        "multiple of the trunk's",
        setting("TM+TE", "insert_rate", ("1", "3", "10", "30", "100"), "10", "rate"),
    ),
    Ablation(
        "low-rank-rate",
        "learning rate of rank-4 updates in the last block",
        "multiple of the trunk's",
        setting("Adapt last block", "low_rank_rate", ("0.3", "1", "3", "10"), "3", "rate"),
    ),
    Ablation(
        "even-rate",
        "learning rate of rank-12 updates in the MLP of the last block, under even weights",
        "multiple of the trunk's",
        setting("Adapt MLP r12 last block, even gradients", "low_rank_rate", ("3", "10", "30"), "3", "rate"),
    ),
    Ablation(
        "insert-decay",
        "weight decay of modulators and task tokens",
        "decay",
        setting("TM+TE", "insert_decay", ("0", "0.02", "0.2"), "0", "decay"),
    ),
    Ablation(
        "insert-warmup",
        "steps over which the learning rate of modulators and task tokens rises",
        "steps",
        setting("TM+TE", "insert_warmup", ("0", "100", "300"), "0", "warm-up"),
    ),
    Ablation(
        "position",
        f"where modulators sit {_LAST_HALF}",
        "position",
        (
            ("entry", _TM_LAST_HALF),
            (
                "behind the norms",
                Method("TM behind norms", f"modulators behind the norms {_LAST_HALF}", after_norm(entry=False)),
            ),
            (
                "both",
                Method(
                    "TM entry and norms",
                    f"modulators at the entry and behind the norms {_LAST_HALF}",
                    after_norm(entry=True),
                ),
            ),
        ),
    ),
    Ablation(
        "rank",
        "rank of the updates in the last block",
        "rank",
        (
            *zip(
                ("1", "4", "8", "16"),
                of_table("Adapt r1 last block", "Adapt last block", "Adapt r8 last block", "Adapt r16 last block"),
                strict=True,
            ),
        ),
    ),
    Ablation(
        "layers",
        "which linear layers of the last block have updates, of rank 4 or of as many parameters as rank 4 in all",
        "layers",
        tuple(
            (
                label,
                Method(
                    f"Adapt last block, {label}",
                    f"low-rank updates in the last block, {label}",
                    last_blocks(1, rank=rank, layers=layers),
                ),
            )
            if label != "all"
            else (label, of_table("Adapt last block")[0])
            for label, rank, layers in (
                ("attention", 4, _ATTENTION),
                ("MLP", 4, _MLP),
                ("all", 4, ""),
                ("attention, rank 11", 11, _ATTENTION),
                ("MLP, rank 6", 6, _MLP),
            )
        ),
    ),
    Ablation(
        "contents",
        f"what the streams carry {_LAST_HALF}",
        "contents",
        (
            ("TM", _TM_LAST_HALF),
            ("TE", Method("TE last half", f"task tokens {_LAST_HALF}", last_blocks(None, expansion=True))),
            ("TM+TE", of_table("TM+TE last")[0]),
            ("Adapt", of_table("Adapt last half")[0]),
            (
                "all three",
                Method(
                    "TM+TE+Adapt last half",
                    f"all three {_LAST_HALF}",
                    last_blocks(None, modulation=True, expansion=True, rank=4),
                ),
            ),
            ("own blocks", of_table("own last half")[0]),
        ),
    ),
    *(
        Ablation(
            f"block-{word}",
            f"{says} in one block alone",
            "block",
            tuple(
                (
                    str(place),
                    Method(
                        f"{word} block {place}", f"{says} in block {place} alone", one_block(place, modulation, rank)
                    ),
                )
                for place in range(6)
            ),
        )
        for word, says, modulation, rank in (("adapt", "rank-4 updates", False, 4), ("tm", "modulators", True, 0))
    ),
    Ablation(
        "budget",
        "rank-4 updates on a budget of inference",
        "times MT's inference",
        tuple(
            (
                value,
                Method(
                    f"Adapt within {value} x",
                    f"rank-4 updates within {value} times MT's inference",
                    within_cost(float(value)),
                ),
            )
            if value in ("1.25", "3")
            else (value, of_table(f"Adapt within {value} x")[0])
            for value in ("1.25", "1.5", "2", "3")
        ),
    ),
)
