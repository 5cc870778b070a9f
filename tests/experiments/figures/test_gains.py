"""From rows to figures of what is gained: which rows are drawn, as what, and from which seeds."""

from typing import Any

from experiments.ablations import ablation_of
from experiments.figures.gain_by_parameters import CONTENTS
from experiments.figures.gains import CARRYING, gains_by_parameters


def runs_of(*ablations: str, gain: float = 1.0) -> list[dict[str, Any]]:
    """Two seeds; every arm is `gain` and a little better than MT, more so in the second seed."""
    arms = {method.name: method for name in ablations for _, method in ablation_of(name).arms}
    added = {"MT": -2.0, "ST": 0.0, **{name: -2.0 + gain + place / 10 for place, name in enumerate(arms)}}
    return [
        {
            "suite": "nuclei",
            "settings": {"seed": seed},
            "rows": [
                {
                    "method": name,
                    "delta_m": value + seed * (name not in ("MT", "ST")),
                    "parameters_added_percent": 10.0,
                    "wall_clock_ratio": 1.5,
                }
                for name, value in added.items()
            ],
        }
        for seed in range(2)
    ]


def drawn(*ablations: str) -> list[tuple[float, str]]:
    """Height and content of every marker."""
    axes = gains_by_parameters([(ablation_of(name), runs_of(name)) for name in ablations]).axes[1]
    names = {colour: contents for contents, (colour, _) in CONTENTS.items()}
    markers = [line for line in axes.lines if line.get_marker() != "None"]
    return [(round(float(line.get_ydata()[0]), 6), names[str(line.get_color())]) for line in markers]


def test_every_arm_is_drawn_as_what_it_carries():
    contents = ["paper", "paper", "paper", "updates", "mixed", "copies"]
    assert drawn("contents") == [(1.5 + place / 10, kind) for place, kind in enumerate(contents)]


def test_copies_of_parts_are_copies():
    contents = [kind for _, kind in drawn("parting")]
    assert contents == ["updates", "updates", "copies", "copies"]


def test_arms_that_come_late_are_left_out():
    late = [label for label, _ in ablation_of("copies-moment").arms if not label.endswith(" 0 %")]
    assert len(late) == 2
    assert len(drawn("copies-moment")) == len(ablation_of("copies-moment").arms) - 2


def test_an_arm_of_several_ablations_is_drawn_once():
    both = {method.name for name in ("contents", "position") for _, method in ablation_of(name).arms}
    assert len(drawn("contents", "position")) == len(both) < 9


def test_all_that_vary_contents_are_ablations():
    assert [ablation_of(name).name for name in CARRYING] == list(CARRYING)
