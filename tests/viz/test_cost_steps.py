from __future__ import annotations

import pytest

from dtme.plan.budget import find_steps, sum_resolved
from dtme.plan.cost import BlockFlops, ModelFlops, price
from dtme.plan.placement import Inserts
from dtme.viz import cost_steps
from experiments.page.captions import of_cost_steps
from experiments.page.page import write_page


def with_flops(report, *, tokens=(5, 1)):
    blocks = {block: BlockFlops(1000 + 7 * place, 0, 3, tokens) for place, block in enumerate(report.blocks)}
    return report.__class__(**{**vars(report), "flops": ModelFlops(900, blocks)})


@pytest.mark.parametrize(("tasks", "blocks"), [(2, 1), (4, 12), (11, 4), (3, 48)])
def test_nothing_overlaps(make_report, assert_readable, tasks, blocks):
    assert_readable(with_flops(make_report(tasks, blocks)).plot_costs())


def test_long_names_still_fit(make_report, assert_readable):
    blocks = tuple(f"backbone.{stage}.residual_attention_block" for stage in "abc")
    assert_readable(with_flops(make_report(3, 3, blocks=blocks)).plot_costs())


def test_the_line_is_the_staircase_and_the_dot_the_plan_without_a_budget(make_report):
    report = with_flops(make_report(3, 6))
    steps, default = find_steps(report, Inserts()), report.plan()
    above, below, _ = report.plot_costs().axes
    costs, shares = above.lines[0].get_data()
    whole = sum_resolved(report, default)
    assert list(costs) == [1.0, *(step.cost for step in steps), above.get_xlim()[1]]
    assert list(shares[1:-1]) == [100 * step.resolved / whole for step in steps]
    assert list(above.collections[-1].get_offsets()[0]) == [price(default, report.flops).ratio, 100]
    half = next(step for step in steps if step.resolved >= whole / 2)
    assert f"half of it: {half.cost:.2f} ×" in [text.get_text() for text in above.texts]
    assert above.get_xlim() == below.get_xlim()


def test_columns_are_the_streams_of_the_plans(make_report):
    report = with_flops(make_report(3, 6))
    drawn = report.plot_costs().axes[1].collections[0].get_array().T
    steps = find_steps(report, Inserts())
    assert drawn[0].tolist() == [1] * 6
    for column, step in zip(drawn[1:], steps, strict=True):
        assert column.tolist() == list(price(step.plan, report.flops).streams.values())


def test_words_say_what_is_drawn(make_report):
    steps = find_steps(with_flops(make_report(3, 6)), Inserts())
    assert f"{len(steps)} plans" in of_cost_steps(steps)
    assert f"all {steps[-1].cost:.2f}" in of_cost_steps(steps)


def test_without_flops_there_is_no_figure(make_report):
    with pytest.raises(ValueError, match="holds no FLOPs"):
        make_report(2, 2).plot_costs()
    with pytest.raises(ValueError, match="nothing to draw"):
        cost_steps(make_report(2, 2), [], make_report(2, 2).plan())


@pytest.mark.parametrize("tokens", [(5, 1), None])
def test_the_page_shows_it_where_flops_are_known(make_report, make_results, tmp_path, tokens):
    report = with_flops(make_report(2, 3), tokens=tokens)
    write_page(tmp_path / "page.html", make_results(report.tasks), report, report.plan(), None)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'id="costs"' in html
    assert "A staircase of" in html
    plain = make_report(2, 3)
    write_page(tmp_path / "page.html", make_results(plain.tasks), plain, plain.plan(), None)
    assert 'id="costs"' not in (tmp_path / "page.html").read_text(encoding="utf-8")
