"""What a report says of its own figures: which blocks are settled, which are a coin flip, and what is no more than chance."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from models import make_batches, task_losses, tiny_vit
from reports import rates, report_of

import dtme
from dtme.report.notes import describe_chance, describe_choice, describe_zeros

BLOCKS = ("x.0", "x.1", "x.2", "x.3")


def test_settled_and_open_blocks_are_named_for_either_kind_of_insert():
    chosen = [{0, 1}, {2, 3}]
    some, none = describe_choice(BLOCKS, chosen, [[False, True, True, False], [True] * 4], 0.95, 40)
    assert some == (
        "Modulators, in half of the blocks, at 95% after 40 samples: settled are x.0; a coin flip between x.1, x.2."
    )
    assert none == "Task tokens, in half of the blocks, at 95% after 40 samples: a coin flip between all blocks."
    every, _ = describe_choice(BLOCKS, chosen, [[False] * 4] * 2, 0.9, 40)
    assert every.endswith("at 90% after 40 samples: the choice is settled.")


def test_scores_are_held_against_chance_with_the_spread_of_both():
    """Half-widths of 0.03 and 0.04 make one of 0.05: a score 0.06 off differs, one 0.04 off does not."""
    known = report_of(rates([0.44, 0.46, 0.54, 0.56]), rates([0.5] * 4))
    width = torch.full_like(known.range_rate, 1.0)
    report = dataclasses.replace(
        known,
        range_halfwidth=0.03 * width,
        null_halfwidth=0.03 * width,
        range_chance=torch.full_like(width, 0.5),
        null_chance=torch.full_like(width, 0.1),
        range_chance_halfwidth=0.04 * width,
        null_chance_halfwidth=0.04 * width,
    )
    by_range, by_null = describe_chance(report)
    one, other = report.blocks[1:3]
    assert by_range == f"Range space, at 95%: scores differ from chance, but not those of {one}, {other}."
    assert by_null == "Null space, at 95%: every score differs from chance."
    alike = dataclasses.replace(report, range_chance=report.range_rate)
    assert describe_chance(alike)[0] == "Range space, at 95%: no score differs from chance."
    unknown = dataclasses.replace(report, range_chance=math.nan * width, null_chance=None)
    assert describe_chance(unknown) == []


def test_blocks_where_hardly_anything_was_compared_are_named():
    known = report_of(rates([0.4, 0.4]), rates([0.5, 0.5]))
    report = dataclasses.replace(known, zero_share=(0.5, 0.987))
    assert describe_zeros(known) == []
    (note,) = describe_zeros(report)
    assert note.endswith(f"a gradient is zero there: {report.blocks[1]} 98.7%.")


def test_a_report_and_its_plan_say_it_by_default(tmp_path: Path):
    """A third of a few samples gives another plan than the next: neither is left without a word of it."""
    model = tiny_vit()
    report = dtme.analyze(model, task_losses, make_batches(model, (8, 8, 8)))
    told = [note for note in report.notes if note.startswith(("Modulators", "Task tokens", "Range", "Null"))]
    assert len(told) == 4
    plan = report.plan()
    for note in told:
        assert note in str(report)
        assert note in str(plan)
    assert plan == dtme.Plan.from_json(plan.to_json())  # what was known of the samples is no part of what is inserted
    assert "notes" not in plan.to_dict()
    report.save(tmp_path / "report.json")
    assert dtme.ConflictReport.load(tmp_path / "report.json").notes == report.notes
    assert report.plan(select="random").notes == ()


def test_few_samples_settle_nothing():
    model = tiny_vit()
    report = dtme.analyze(model, task_losses, make_batches(model, (8,)))
    assert report.undecided == report.blocks
    assert sum("a coin flip between all blocks" in note for note in report.notes) == 2
    disjoint = make_batches(model, (8, 8, 8), present=[(task,) for task in model.tasks])
    assert "cannot be told: some tasks share no inputs" in str(dtme.analyze(model, task_losses, disjoint))
