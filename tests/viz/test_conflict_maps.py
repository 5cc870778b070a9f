from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dtme.viz
from dtme.viz import conflict_maps
from experiments import figures, page


@pytest.mark.parametrize(("tasks", "blocks"), [(2, 1), (2, 48), (4, 12), (5, 12), (11, 1), (11, 48)])
def test_a_cell_per_block_and_pair_and_nothing_overlaps(make_report, assert_readable, tasks, blocks):
    figure = conflict_maps(make_report(tasks, blocks))
    for axes in (figure.axes[0], figure.axes[2]):
        (mesh,) = axes.collections
        assert mesh.get_array().shape == (blocks, tasks * (tasks - 1) // 2)
        assert len(axes.get_xticklabels()) == tasks * (tasks - 1) // 2
        assert len(axes.get_yticklabels()) == blocks
    assert_readable(figure)


def test_long_names_still_fit(make_report, assert_readable):
    blocks = tuple(f"backbone.{stage}.residual_attention_block" for stage in "abc")
    assert_readable(conflict_maps(make_report(("a_very_long_name_of_a_task_that_goes_on", "b", "c"), 3, blocks=blocks)))


def test_cells_show_the_rates_of_their_block_and_pair(make_report):
    report = make_report(3, 2)
    figure = conflict_maps(report)
    for axes, rate in ((figure.axes[0], report.range_rate), (figure.axes[2], report.null_rate)):
        drawn = torch.as_tensor(axes.collections[0].get_array())
        expected = torch.stack([rate[:, 0, 1], rate[:, 0, 2], rate[:, 1, 2]], 1)
        torch.testing.assert_close(drawn, expected)
        assert [text.get_text().split("\n")[0] for text in axes.texts] == [f"{r:.2f}" for r in expected.flatten()]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "semseg ×\ndepth",
        "semseg ×\nnormals",
        "depth ×\nnormals",
    ]


def test_both_maps_share_one_scale_that_covers_every_rate(make_report):
    report = make_report(4, 6)
    figure = conflict_maps(report)
    first, second = figure.axes[0].collections[0].norm, figure.axes[2].collections[0].norm
    assert (first.vmin, first.vmax) == (second.vmin, second.vmax)
    off_diagonal = ~torch.eye(4, dtype=torch.bool)
    rates = torch.cat([report.range_rate[:, off_diagonal], report.null_rate[:, off_diagonal]])
    assert first.vmin <= float(rates.min())
    assert first.vmax >= float(rates.max())


def test_scores_stand_beside_their_blocks(make_report):
    report = make_report(4, 6)
    figure = conflict_maps(report)
    for axes, score in ((figure.axes[1], report.range_score()), (figure.axes[3], report.null_score())):
        dots = axes.collections[-1].get_offsets()
        torch.testing.assert_close(torch.as_tensor(dots[:, 0].data), score)
        assert [text.get_text()[:5] for text in axes.texts] == [f"{value:.3f}" for value in score]


def test_few_cells_carry_numbers_many_do_not(make_report):
    assert len(conflict_maps(make_report(5, 24)).axes[0].texts) == 240
    assert len(conflict_maps(make_report(6, 12)).axes[0].texts) == 0


def test_a_halfwidth_that_one_sample_cannot_give(make_report):
    infinite = torch.full((2, 3, 3), torch.inf, dtype=torch.float64)
    figure = conflict_maps(make_report(3, 2, range_halfwidth=infinite, null_halfwidth=infinite))
    assert all(text.get_text().endswith("±?") for text in [*figure.axes[0].texts, *figure.axes[1].texts])
    assert any("none could be estimated" in text.get_text() for text in figure.texts)


def test_a_pair_that_was_never_compared_is_blank(make_report):
    rate = make_report(2, 1).range_rate.clone()
    rate[0, 0, 1] = rate[0, 1, 0] = torch.nan
    figure = conflict_maps(make_report(2, 1, range_rate=rate))
    assert [text.get_text() for text in figure.axes[0].texts] == ["–"]


def test_blocks_that_are_not_settled_are_marked(make_report):
    figure = conflict_maps(make_report(2, 3, undecided=("trunk.blocks.1",)))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "1*", "2"]
    assert any("not settled" in text.get_text() for text in figure.texts)


def test_a_dollar_is_a_dollar(make_report, drawn):
    texts = [text for text, _ in drawn(conflict_maps(make_report(("$x", "y$_"), 1)))]
    assert "$x ×\ny$_" in texts


def test_the_report_plots_itself(make_report):
    assert len(make_report(2, 2).plot().axes) == 5


def test_figures_have_no_global_state():
    sources = [path for module in (dtme.viz, figures, page) for path in Path(module.__file__).parent.glob("*.py")]
    assert len(sources) > 10
    assert not [source.name for source in sources if "pyplot" in source.read_text(encoding="utf-8")]
