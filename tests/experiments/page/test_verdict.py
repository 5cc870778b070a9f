from __future__ import annotations

import pytest

from experiments.page.verdict import outcome


def test_a_win_is_called_one(make_results):
    sentence = outcome(make_results(better=True))
    assert sentence.startswith(
        "On scenes, DTME (TM+TE) ends ahead of plain multi-task training: its Δm is 1.11 points higher"
    )
    assert "(−2.73 % against −3.84 %) and it is better on 2 of 2 tasks" in sentence
    assert sentence.endswith("for 6,144 more parameters (0.96 %) and 1.91 times the cost of a training step.")


def test_a_loss_is_called_one(make_results):
    sentence = outcome(make_results(better=False))
    assert "ends behind plain multi-task training: its Δm is 1.11 points lower" in sentence
    assert "better on 0 of 2 tasks" in sentence


def test_what_looks_equal_is_level(make_results):
    results = make_results()
    for row in results["rows"]:
        row["delta_m"] = -3.001 if row["method"] == "MT" else -3.002
    assert "ends level with plain multi-task training in Δm" in outcome(results)


def test_lower_is_better_where_the_task_says_so(make_results):
    results = make_results()
    results["tasks"][1]["higher_is_better"] = False
    assert "better on 1 of 2 tasks" in outcome(results)


@pytest.mark.parametrize(
    ("methods", "spoken_for"),
    [(("ST", "MT", "TM", "TE"), "TE"), (("MT", "TM"), "TM"), (("MT", "TE", "TM+TE"), "TM+TE")],
)
def test_the_whole_method_speaks_where_it_was_run(make_results, methods, spoken_for):
    assert f"DTME ({spoken_for})" in outcome(make_results(methods=methods))


def test_without_the_paper_s_method_the_first_row_that_inserts_speaks_and_not_for_dtme(make_results):
    results = make_results(methods=("ST", "MT", "MT 2x", "Adapt last block", "Adapt last half"))
    results["rows"][2]["streams_part_at"] = None
    assert "On scenes, training with inserts (Adapt last block) ends ahead of plain" in outcome(results)
    results["rows"].append({**results["rows"][1], "method": "TM"})
    assert "DTME (TM) ends level" in outcome(results)


def test_rows_that_insert_nothing_are_no_dtme(make_results):
    results = make_results(methods=("ST", "MT", "MT 2x", "PCGrad"))
    for row in results["rows"]:
        row["streams_part_at"] = None
    assert outcome(results).endswith("no DTME row was run.")


def test_never_the_best_of_several(make_results):
    assert "DTME (TM+TE) ends behind" in outcome(make_results(better=False))


@pytest.mark.parametrize(
    ("methods", "missing"),
    [(("ST", "TM"), "plain multi-task"), (("ST", "MT"), "DTME"), (("ST",), "plain multi-task and DTME")],
)
def test_nothing_to_compare(make_results, methods, missing):
    assert (
        outcome(make_results(methods=methods))
        == f"On scenes there is nothing to compare yet: no {missing} row was run."
    )


def test_without_single_task_rows_there_is_no_delta_m(make_results):
    results = make_results(methods=("MT", "TM+TE"))
    for row in results["rows"]:
        row["delta_m"] = None
    assert "needs single-task rows: it is better on 2 of 2 tasks" in outcome(results)
