"""One model that serves threads and coroutines with all its tasks while it is analysed: no wrong output, no growth."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import dtme

TASKS = ("depth", "edges", "semseg")
THREADS, COROUTINES, LENGTH, WIDTH = 2, 50, 5, 16
MOST_GROWTH = 16.0
"""MB that may come after the first third: what allocators keep, and no tensor of a pass."""


class Served(nn.Module):
    """A trunk and three heads, with every kind of insert."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.trunk = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.heads = nn.ModuleDict({task: nn.Linear(WIDTH, 2) for task in TASKS})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """The outputs of all tasks that are computed."""
        tokens = self.trunk(tokens)
        return {task: head(tokens) for task, head in self.heads.items()}


def served() -> Served:
    """The model with a plan, every insert moved from where it begins."""
    names = [f"trunk.layers.{place}" for place in range(4)]
    plan = dtme.Plan(TASKS, {names[1]: TASKS}, {names[2]: TASKS[:2]}, {names[3]: TASKS}, adapt_layers="linear[12]")
    model = dtme.apply(Served().double(), plan).eval()
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.normal_(0.0, 0.3)
    return model


def losses(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """A loss of each task."""
    return {task: (out - place).square().mean() for place, (task, out) in enumerate(model(batch).items())}


def run(seconds: float, seed: int = 0) -> tuple[Counter[str], list[str], float]:
    """Serve for so long.

    Returns:
        Answers by who gave them, what was wrong with some, and by how many MB the process has grown since a third of the time.
    """
    model, inputs = served(), torch.randn(8, LENGTH, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        expected = {task: out.clone() for task, out in model(inputs).items()}
    alone = dtme.analyze(model, losses, [inputs])
    answers: Counter[str] = Counter()
    wrong: list[str] = []
    until = time.monotonic() + seconds

    def check(who: str, found: dict[str, Tensor], rows: slice, tasks: tuple[str, ...]) -> None:
        answers[who] += 1
        close = {task: torch.allclose(found[task], expected[task][rows], rtol=1e-9, atol=1e-12) for task in tasks}
        wrong.extend(f"{who}: {task}" for task in tasks if not close[task])

    def ask(who: str, chance: random.Random) -> None:
        first = chance.randrange(len(inputs))
        rows = slice(first, chance.randrange(first, len(inputs)) + 1)
        kind = chance.randrange(3)
        if kind == 0:
            return check(who, model(inputs[rows]), rows, TASKS)
        if kind == 1:
            chosen = tuple(chance.sample(TASKS, chance.randrange(1, 3)))
            with dtme.tasks(model, *chosen):
                return check(who, model(inputs[rows]), rows, chosen)
        own = [chance.choice(TASKS) for _ in range(len(inputs[rows]))]
        with dtme.tasks(model, per_sample=own):
            found = model(inputs[rows])
        answers[who] += 1
        wanted = torch.stack([expected[task][first + row] for row, task in enumerate(own)])
        given = torch.stack([found[task][row] for row, task in enumerate(own)])
        if not torch.allclose(given, wanted, rtol=1e-9, atol=1e-12):
            wrong.append(f"{who}: rows of {own}")
        return None

    def serve_alone(place: int) -> None:
        chance = random.Random(seed + place)
        with torch.no_grad():
            while time.monotonic() < until:
                ask(f"thread {place}", chance)

    async def serve_in_turn(place: int) -> None:
        chance = random.Random(seed + 100 + place)
        while time.monotonic() < until:
            task = chance.choice(TASKS)
            with dtme.tasks(model, task):
                await asyncio.sleep(0)  # the others have their turn, inside this one's choice
                with torch.no_grad():
                    check("coroutines", model(inputs), slice(None), (task,))
                await asyncio.sleep(0)

    async def serve_many() -> None:
        await asyncio.gather(*(serve_in_turn(place) for place in range(COROUTINES)))

    def analyse() -> None:
        while time.monotonic() < until:
            report = dtme.analyze(model, losses, [inputs])
            answers["analysis"] += 1
            if not torch.equal(report.range_rate, alone.range_rate):
                wrong.append("analysis")

    def guarded(work: Callable[[], object]) -> Callable[[], None]:
        def act() -> None:
            try:
                work()
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}"[:200])

        return act

    workers = [lambda place=place: serve_alone(place) for place in range(THREADS)]
    workers += [lambda: asyncio.run(serve_many()), analyse]
    threads = [threading.Thread(target=guarded(work)) for work in workers]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 3)
    before = _resident()
    for thread in threads:
        thread.join()
    return answers, wrong, _resident() - before


def _resident() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Serve, print the figures, and fail where an answer was wrong or the process grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust.load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    answers, wrong, grown = run(options.seconds)
    told = ", ".join(f"{who} {count}" for who, count in sorted(answers.items()))
    print(f"load: {options.seconds / 60:.1f} minutes, {answers.total()} answers ({told}), wrong: {len(wrong)}")
    print(f"grown since a third of the time: {grown:.1f} MB ({MOST_GROWTH:.0f} are let pass)")
    print("\n".join(f"  {text}" for text in wrong[:10]))
    sys.exit(bool(wrong) or grown > MOST_GROWTH)


if __name__ == "__main__":
    main()
