from __future__ import annotations

import pytest
import torch

from dtme import ConflictReport
from experiments.figures.samples import Samples

NAMES = [
    "semseg",
    "depth",
    "normals",
    "edges",
    "curvature",
    "saliency",
    "parts",
    "reshading",
    "keypoints2d",
    "keypoints3d",
    "segments",
]


def make_report(tasks=4, depth=12, **changes):
    names = tuple(NAMES[:tasks]) if isinstance(tasks, int) else tuple(tasks)
    generator = torch.Generator().manual_seed(depth)
    shape = (depth, len(names), len(names))

    def symmetric(low, high):
        rate = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        return (rate + rate.mT) / 2 * (1 - torch.eye(len(names), dtype=torch.float64))

    pairing = tuple(tuple("" if i == j else "shared" for j in range(len(names))) for i in range(len(names)))
    fields = {
        "tasks": names,
        "blocks": tuple(f"trunk.blocks.{block}" for block in range(depth)),
        "widths": (64,) * depth,
        "range_rank": (9,) * depth,
        "range_rate": symmetric(0.3, 0.5),
        "null_rate": symmetric(0.35, 0.55),
        "range_halfwidth": symmetric(0.01, 0.03),
        "null_halfwidth": symmetric(0.01, 0.03),
        "samples": 128,
        "pairing": pairing,
        "zero_share": (0.0,) * depth,
        "variance_ratio": 100.0,
        "level": 0.95,
    }
    return ConflictReport(**{**fields, **changes})


def make_samples(n=2, size=8, methods=("MT", "TM+TE")):
    generator = torch.Generator().manual_seed(n)

    def of_kinds():
        return {
            "semseg": torch.randint(0, 13, (n, size, size), generator=generator, dtype=torch.uint8),
            "depth": 1 + torch.rand(n, size, size, generator=generator),
            "normals": torch.randn(n, 3, size, size, generator=generator),
            "edges": torch.rand(n, 1, size, size, generator=generator),
            "distance": torch.randn(n, 1, size, size, generator=generator),
        }

    images = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    kinds = {"semseg": "labels", "depth": "depth", "normals": "normals", "edges": "edges", "distance": "signed"}
    return Samples(images, of_kinds(), {method: of_kinds() for method in methods}, kinds)


def make_results(tasks=("semseg", "depth"), methods=("ST", "MT", "TM", "TE", "TM+TE"), better=True):
    """Numbers made up for the tests, each of them different."""
    rows = []
    for place, method in enumerate(methods):
        ahead = place if better else -place
        rows.append(
            {
                "method": method,
                "metrics": {task: 40.11 + 7 * i + 0.13 * ahead for i, task in enumerate(tasks)},
                "delta_m": -4.21 + 0.37 * ahead,
                "gains": {task: -5.17 - i + 0.29 * ahead for i, task in enumerate(tasks)},
                "parameters_added": 1536 * place,
                "parameters_added_percent": 0.24 * place,
                "step_cost": 1.11 + 0.2 * place if place else None,
                "inference_cost": 1.07 + 0.2 * place if place else None,
                "streams_part_at": "trunk.blocks.6" if place > 1 else None,
                "wall_clock": 21.3 + 9 * place,
                "wall_clock_ratio": 1.03 + 0.3 * place,
            }
        )
    return {
        "format": "dtme.results",
        "version": 1,
        "suite": "scenes",
        "command": "python -m experiments demo",
        "versions": {"torch": "2.15.0", "timm": "1.0.20"},
        "hardware": "2 cores",
        "settings": {"steps": 1000, "seeds": [0], "learning_rate": 0.0003},
        "notes": ["Every row starts from the same trunk."],
        "tasks": [{"name": task, "metric": "score", "higher_is_better": True} for task in tasks],
        "rows": rows,
        "curves": {"MT": {task: [[0, 1.0], [10, 0.6], [20, 0.5]] for task in tasks}},
        "seconds": 272.0,
    }


@pytest.fixture(scope="session", name="make_report")
def _make_report():
    return make_report


@pytest.fixture(scope="session", name="make_samples")
def _make_samples():
    return make_samples


@pytest.fixture(scope="session", name="make_results")
def _make_results():
    return make_results


@pytest.fixture(scope="session")
def drawn():
    """Draw a figure and give the boxes, in pixels, of its texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    def draw(figure):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        unseen = [label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in beyond(axis)]
        shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        texts = [text for text in shown if text not in unseen]
        return [(text.get_text(), text.get_window_extent(renderer)) for text in texts]

    def beyond(axis):
        """Labels of ticks that lie outside of the axes, which matplotlib keeps but does not draw."""
        low, high = sorted(axis.get_view_interval())
        if not axis.axes.axison:
            return axis.get_ticklabels()
        slack = 1e-9 * (high - low)
        return [tick.label1 for tick in axis.get_major_ticks() if not low - slack <= tick.get_loc() <= high + slack]

    return draw


@pytest.fixture(scope="session")
def assert_on_page(drawn):
    """Every text lies inside its figure."""

    def check(figure):
        boxes = drawn(figure)
        width, height = figure.get_size_inches() * figure.dpi
        for text, box in boxes:
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
            assert inside, f"{text!r} leaves the figure"
        return boxes

    return check


@pytest.fixture(scope="session")
def assert_readable(assert_on_page):
    """Every text lies inside its figure and covers no other."""

    def check(figure):
        boxes = assert_on_page(figure)
        for place, (text, box) in enumerate(boxes):
            for other, second in boxes[place + 1 :]:
                apart = (
                    min(box.x1, second.x1) - max(box.x0, second.x0) < 1
                    or min(box.y1, second.y1) - max(box.y0, second.y0) < 1
                )
                assert apart, f"{text!r} and {other!r} overlap"

    return check
