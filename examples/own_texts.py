"""Three tasks of your own in CSV files, two with classes and one with a number, trained together and told apart by `dtme`.

    python examples/own_texts.py FOLDER [TRUNK]

FOLDER holds `topic/train.csv` and `topic/dev.csv` with the columns `text` and `label`, and so on for each task.
"""

import sys
from functools import partial
from pathlib import Path

import dtme
from experiments import text


def main(folder: str, trunk: str = text.MINILM, out: str = "runs/own", steps: int = 1000) -> text.Figures:
    """Train, and give each task's measures on its `dev.csv`."""
    tasks = (
        text.classes("topic", ("sport", "trade", "science")),
        text.classes("same", ("no", "yes"), text=("question", "answer")),  # about two sentences
        text.number("stars", target="stars", bounds=(1, 5)),
    )
    recipe = text.TextRecipe(trunk=trunk, steps=steps)
    suite = text.load(tasks, partial(text.read_folder, Path(folder)), trunk)
    run = text.begin(text.build(trunk, tasks, seed=0), suite, recipe)
    text.train(run, recipe.expand_at)  # the heads warm up
    report = text.analyse(run.model, suite, recipe)  # measure
    text.insert(run, report.plan(fraction=0.5))  # decide, act
    text.train(run)  # train on
    print(report, *suite.remarks, sep="\n")
    dtme.save_pretrained(run.model, out, base=True)
    return text.evaluate(run.model, suite)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
