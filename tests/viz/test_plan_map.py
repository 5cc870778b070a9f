from __future__ import annotations

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import FancyBboxPatch
from torch import nn

from dtme import Plan, apply
from dtme.plan.stream_layout import groups_per_block
from dtme.viz import plan_map
from dtme.viz.palette import SHARED, colours

BLOCKS = [f"blocks.{i}" for i in range(4)]
TASKS = ("a", "b", "c")


def marks(figure, field):
    return [line for line in figure.axes[0].lines if line.get_label() == field]


def boxes(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]


@pytest.mark.parametrize(("tasks", "blocks"), [(2, 1), (2, 48), (4, 12), (11, 1), (11, 48)])
def test_every_insert_is_drawn_and_nothing_overlaps(make_report, assert_readable, tasks, blocks):
    report = make_report(tasks, blocks)
    plan = report.plan()
    figure = plan_map(plan, report.blocks)
    assert len(boxes(figure)) == blocks
    assert len(marks(figure, "modulate")) == sum(map(len, plan.modulate.values()))
    assert len(marks(figure, "expand")) == sum(map(len, plan.expand.values()))
    assert [text.get_text() for text in figure.axes[0].texts if text.get_label() == "branch"] == list(report.tasks)
    assert_readable(figure)


def test_long_names_still_fit(assert_readable):
    blocks = [f"{stage}.residual_attention_block" for stage in "abc"]
    tasks = ("a_very_long_name_of_a_task_that_goes_on", "b")
    assert_readable(plan_map(Plan(tasks, {blocks[1]: tasks}), blocks))


def test_marks_lie_on_the_line_of_their_task_in_its_colour():
    plan = Plan(TASKS, modulate={"blocks.2": TASKS})
    figure = plan_map(plan, BLOCKS)
    branch = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts if text.get_label() == "branch"}
    drawn = {mark.get_markerfacecolor(): float(mark.get_ydata()[0]) for mark in marks(figure, "modulate")}
    assert drawn == {colours(TASKS)[task]: pytest.approx(branch[task]) for task in TASKS}


def test_a_block_is_as_tall_as_its_streams():
    figure = plan_map(Plan(TASKS, modulate={"blocks.1": ("a",), "blocks.3": TASKS}), BLOCKS)
    heights = [box.get_height() for box in boxes(figure)]
    assert heights[0] < heights[1] == heights[2] < heights[3]


def test_the_trunk_is_one_line_and_its_streams_have_colours():
    figure = plan_map(Plan(TASKS, modulate={"blocks.2": TASKS}), BLOCKS)
    lines = [to_hex(patch.get_edgecolor()) for patch in figure.axes[0].patches if not isinstance(patch, FancyBboxPatch)]
    own = list(colours(TASKS).values())
    assert lines == [SHARED] * 2 + own * 2 + own  # two blocks together, two apart, then the branches


def test_an_empty_plan_is_a_trunk_that_never_parts(assert_readable):
    figure = plan_map(Plan(TASKS), BLOCKS)
    assert figure.axes[0].get_title(loc="left") == "Streams never part"
    assert any("empty" in text.get_text() for text in figure.axes[0].texts)
    assert_readable(figure)


def test_joint_tokens_stay_on_the_one_stream(assert_readable):
    figure = plan_map(Plan(TASKS, expand={"blocks.1": TASKS}, joint_tokens=True), BLOCKS)
    assert figure.axes[0].get_title(loc="left") == "Streams never part"
    assert len({float(mark.get_ydata()[0]) for mark in marks(figure, "expand")}) == 3
    assert_readable(figure)


def test_the_cost_in_blocks_is_written_out():
    figure = plan_map(Plan(TASKS, modulate={"blocks.2": TASKS}), BLOCKS)
    (line,) = [text.get_text() for text in figure.axes[0].texts if "instead of" in text.get_text()]
    assert "cost 8 blocks instead of 4 (2 ×); separate models would cost 12" in line


def test_tasks_that_share_a_stream_are_neighbours():
    figure = plan_map(Plan(TASKS, modulate={"blocks.1": ("b",)}), BLOCKS)
    rows = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts if text.get_label() == "branch"}
    assert sorted(rows, key=rows.__getitem__) == ["a", "c", "b"]


def test_blocks_must_hold_those_of_the_plan():
    with pytest.raises(ValueError, match=r"lacks 'blocks\.9'"):
        plan_map(Plan(TASKS, modulate={"blocks.9": TASKS}), BLOCKS)
    with pytest.raises(ValueError, match="give every block"):
        plan_map(Plan(TASKS), [])


@pytest.mark.parametrize("joint", [False, True])
def test_streams_are_those_a_model_runs(joint):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
            self.trunk = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
            self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})

        def forward(self, x):
            tokens = self.trunk(x)
            return {task: head(tokens) for task, head in self.heads.items()}

    blocks = [f"trunk.layers.{i}" for i in range(4)]
    plan = Plan(TASKS, modulate={blocks[1]: ("b",)}, expand={blocks[2]: TASKS}, joint_tokens=joint)
    model = apply(Model().eval(), plan)
    model(torch.randn(2, 5, 8))
    run = [model.get_submodule(block).dtme.calls.last.groups for block in blocks[1:]]
    assert groups_per_block(plan, blocks)[1:] == run


def test_streams_that_part_inside_a_block_are_said_to_part_there():
    blocks = [f"blocks.{place}" for place in range(4)]
    plan = Plan(("a", "b"), adapt={"blocks.2.mlp": ("a", "b"), "blocks.3": ("b",)})
    axes = plan_map(plan, blocks).axes[0]
    assert axes.get_title(loc="left") == "Streams part at blocks.2.mlp"
    said = " ".join(text.get_text() for text in axes.texts)
    assert "All tasks together cost at most 6 blocks instead of 4 (1.5 ×)" in said
    both = Plan(("a", "b"), modulate={"blocks.2.attn": ("a",), "blocks.2.mlp": ("b",)})
    assert plan_map(both, blocks).axes[0].get_title(loc="left") == "Streams part at blocks.2"
