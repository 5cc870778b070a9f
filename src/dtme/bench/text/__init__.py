"""Multi-task training on text: tasks that each have sentences of their own, one pretrained encoder, a head per task.

For a set of your own see `examples/own_texts.py`; the nine tasks of GLUE are `dtme.bench.glue`.
"""

from dtme.bench.text.analysis import analyse
from dtme.bench.text.encoding import load, read_folder
from dtme.bench.text.evaluation import Figures, average, evaluate, how_averaged, predict, score
from dtme.bench.text.model import TextMultitask, build
from dtme.bench.text.recipe import TextRecipe
from dtme.bench.text.suite import Batch, TextSuite
from dtme.bench.text.tasks import TextTask, classes, number
from dtme.bench.text.training import TextRun, begin, insert, objective, task_losses, train
from dtme.bench.text.trunk import MINILM

__all__ = [
    "MINILM",
    "Batch",
    "Figures",
    "TextMultitask",
    "TextRecipe",
    "TextRun",
    "TextSuite",
    "TextTask",
    "analyse",
    "average",
    "begin",
    "build",
    "classes",
    "evaluate",
    "how_averaged",
    "insert",
    "load",
    "number",
    "objective",
    "predict",
    "read_folder",
    "score",
    "task_losses",
    "train",
]
