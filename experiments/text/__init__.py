"""Multi-task training on text: tasks that each have sentences of their own, one pretrained encoder, a head per task.

For a set of your own see `examples/own_texts.py`; the nine tasks of GLUE are `experiments.text.glue`.
"""

from experiments.text.analysis import analyse
from experiments.text.data.encoding import load, read_folder
from experiments.text.data.suite import Batch, TextSuite
from experiments.text.data.tasks import TextTask, classes, number
from experiments.text.evaluation import Figures, average, evaluate, how_averaged, predict, score
from experiments.text.model import TextMultitask, build
from experiments.text.recipe import TextRecipe
from experiments.text.training import begin, insert, objective, task_losses
from experiments.text.trunk import MINILM
from experiments.training.run import Run, train

__all__ = [
    "MINILM",
    "Batch",
    "Figures",
    "Run",
    "TextMultitask",
    "TextRecipe",
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
