"""Test images beside the truth and the predictions of every method."""

from __future__ import annotations

from matplotlib.figure import Figure

from dtme.viz.palette import FAINT, MUTED
from dtme.viz.sheet import canvas, ellipsis, house_style, panel, sheet
from experiments.figures.pixels import Pixels, pixels, value_range
from experiments.figures.samples import Samples
from experiments.figures.text_wrap import wrapped

_MOST_COLUMNS = 13  # the image and four tasks by truth and two methods
_WIDTH = 0.88  # of a picture, in inches
_LINE = 0.125  # height of a line of a column's name
_BETWEEN = 0.04
_BETWEEN_TASKS = 0.14


@house_style
def sample_predictions(samples: Samples) -> Figure:
    """A row per image: the image, then per task the truth and what each method predicts.

    Tasks that do not fit beside one another continue in a band below. Within a row, the pictures of a task share their
    colours. Each picture is one axes, labelled `"task, truth"` or `"task, method"`.

    Example:
        >>> import torch
        >>> depth = torch.rand(2, 4, 4) + 1
        >>> images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        >>> figure = sample_predictions(Samples(images, {"depth": depth}, {"MT": {"depth": depth}}, {"depth": "depth"}))
        >>> [axes.get_label() for axes in figure.axes[1:]]
        ['image', 'image', 'depth, truth', 'depth, truth', 'depth, MT', 'depth, MT']
    """
    tasks, shown = list(samples.kinds), ["truth", *samples.predictions]
    per_band = max(1, min(len(tasks), (_MOST_COLUMNS - 1) // len(shown)))
    bands = [tasks[start : start + per_band] for start in range(0, len(tasks), per_band)]
    image_height, image_width = samples.images.shape[-2:]
    heads = [wrapped(name, _WIDTH, 7.5) for name in shown]
    above = 0.5 + _LINE * max(head.count("\n") for head in heads)
    width, height = _WIDTH, _WIDTH * image_height / image_width
    group = len(shown) * (width + _BETWEEN) - _BETWEEN + _BETWEEN_TASKS
    band_height = above + len(samples) * (height + _BETWEEN) + 0.12
    figure = sheet(0.3 + width + _BETWEEN_TASKS + per_band * group, 0.05 + len(bands) * band_height)
    words = canvas(figure)

    for band, members in enumerate(bands):
        top = 0.05 + band * band_height + above
        words.text(0.15, top - 0.06, "image", fontsize=7.5, color=MUTED, va="bottom")
        for row in range(len(samples)):
            picture = samples.images[row].permute(1, 2, 0).cpu().numpy()
            _show(figure, picture, (0.15, top + row * (height + _BETWEEN), width, height), "image")
        for place, task in enumerate(members):
            left = 0.15 + width + _BETWEEN_TASKS + place * group
            words.text(left, top + 0.26 - above, ellipsis(task, 30), fontsize=9, fontweight="bold", va="bottom")
            for column, (name, head) in enumerate(zip(shown, heads, strict=True)):
                x = left + column * (width + _BETWEEN)
                words.text(x, top - 0.06, head, fontsize=7.5, color=MUTED, va="bottom")
                of_task = samples.targets[task] if column == 0 else samples.predictions[name][task]
                for row in range(len(samples)):
                    within = value_range(samples.targets[task][row], samples.kinds[task])
                    picture = pixels(of_task[row], samples.kinds[task], within)
                    _show(figure, picture, (x, top + row * (height + _BETWEEN), width, height), f"{task}, {name}")
    return figure


def _show(figure: Figure, picture: Pixels, box: tuple[float, float, float, float], label: str) -> None:
    axes = panel(figure, *box)
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.set_label(label)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=FAINT, linewidth=0.6)
