"""Measure all ratios, print them, and hold them against their limits and against those committed.

python -m benchmarks             # fails where a ratio is beyond its limit, or worse than the committed one by more than 15 %
python -m benchmarks --record    # writes results/speed.json (speed-cuda.json on a GPU) and the tables of docs/speed.md
python -m benchmarks.memory      # the peaks of an analysis by tasks and batch, for docs/scale.md; seconds
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import analysis, memory, passes, processes
from benchmarks.clock import CLOCK, import_beyond_torch, once, seconds_of_help
from benchmarks.page import speed_page
from benchmarks.rows import Row, beyond, load, regressions, save, table
from benchmarks.sizes import ONE_TASK, SIZES
from benchmarks.subject import DEVICE, inference, step

ROOT = Path(__file__).parents[1]


def rows() -> Iterator[Row]:
    """All ratios, one after the other."""
    sizes = SIZES[DEVICE]
    usual = sizes.usual
    ratio = analysis.against_its_parts(usual, batches=4, turns=5)
    yield Row("analysis", "analyze / its parts timed alone", ratio, at_most=1.25)
    turns = 5
    ratio, difference = analysis.against_the_literal_way(sizes.literal, batches=3, turns=turns)
    yield Row("analysis", f"the literal way / analyze ({turns} turns)", ratio, at_least=10)
    what = "largest difference between the two ways' rates"
    yield Row("analysis", what, once(difference), at_most=analysis.SAME_RATES, compared=False)
    for name, run in (("step", step), ("inference", inference)):
        for where, make in (("from the first block", passes.published), ("from half way", passes.late)):
            ratio = passes.per_flop(usual, run, make, turns=7)
            yield Row(name, f"TM+TE {where}, time per FLOP / the unmodified model's", ratio, at_most=1.10)
        ratio = passes.per_flop(usual, run, passes.late_updates, turns=7)
        yield Row(name, "rank-4 updates from half way, time per FLOP / the unmodified model's", ratio, at_most=1.10)
        ratio = passes.per_flop(usual, run, passes.copies, turns=7)
        yield Row(name, "own blocks from half way, time per FLOP / the unmodified model's", ratio, at_most=1.10)
    yield Row(
        "adaptation", "batched product / its bare products", passes.batched_product(usual, turns=31), at_most=1.15
    )
    for called, size in sizes.adapted.items():
        for name, run in (("step", step), ("inference", inference)):
            ratio = passes.on_top_of_modulation(size, run, turns=7)
            yield Row("adaptation", f"{name} with rank-4 updates / without, {called}", ratio, at_most=1.10)
    for called, (size, limit) in sizes.one_task.items():
        ratio = passes.one_task(size, passes.published, turns=25)
        yield Row("one task", f"TM+TE / unmodified, eager, {called}", ratio, at_most=limit)
    ratio = passes.one_task(usual, passes.published, turns=51, changed=passes.by_hand)
    yield Row("one task", "TM+TE / the same by bare hooks, eager", ratio, at_most=1.05)
    called, size = sizes.compiled
    ratio = passes.one_task(size, passes.published, turns=31, compiled=True)
    yield Row("one task", f"TM+TE / unmodified, compiled, {called}", ratio, at_most=ONE_TASK)
    for name, run in (("step", step), ("inference", inference)):
        for rival, ratio in passes.rivals(usual, run, turns=5).items():
            yield Row("rivals", f"{name}: {rival} / the plan", ratio, at_least=0)
    yield Row("memory", "peak of analyze / of a training step", once(memory.of_analysis(usual)), at_most=1.0)
    six, eleven = memory.with_tasks(usual, 6), memory.with_tasks(usual, 11)
    yield Row("memory", "peak of analyze / of a training step, 6 tasks", once(memory.of_analysis(six)), at_most=1.0)
    yield Row("memory", "peak of analyze / of a training step, 11 tasks", once(memory.of_analysis(eleven)), at_most=1.4)
    several = once(memory.of_analysis(eleven, memory.reading_four_blocks(eleven)))
    yield Row("memory", "peak of analyze / of a training step, 11 tasks, heads read four blocks", several, at_most=1.4)
    limits = {"from the first block": 4.0, "from half way": 2.5}
    for where, peak in memory.of_streams(usual).items():
        yield Row("memory", f"step, 4 streams {where} / plain", once(peak), at_most=limits[where])
    yield Row("start", "seconds of dtme --help", once(seconds_of_help()), at_most=1.0, compared=False)
    what = "seconds of import dtme, all names, beyond torch"
    yield Row("start", what, once(import_beyond_torch()), at_most=0.3, compared=False)
    if DEVICE == "cpu":
        for count in (2, 4):
            ratio = once(processes.speed_up(count))
            yield Row("processes", f"{count} processes: speed-up of analyze", ratio, at_least=count / 2)


def judged(measured: Sequence[Row], root: Path, *, record: bool) -> int:
    """What the command ends with: 1 where a row is beyond its limit or, unless it is recorded, worse than the committed one.

    Args:
        measured: The rows.
        root: Where `results` and `docs` are.
        record: Write the rows and the page, limits or not; nothing else writes them.
    """
    path = root / "results" / ("speed.json" if DEVICE == "cpu" else f"speed-{DEVICE}.json")
    wrong = [f"beyond its limit: {line}" for line in beyond(measured)]
    if record:
        save(path, measured)
        (root / "docs/speed.md").write_text(speed_page(root), encoding="utf-8")
    elif path.exists():
        wrong += [f"worse: {line}" for line in regressions(measured, load(path))]
    else:
        print(f"no {path.relative_to(root)}: limits alone were checked, there is nothing to compare with (--record)")
    print("\n".join(wrong))
    return 1 if wrong else 0


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--record", action="store_true", help="write the figures instead of comparing with those committed"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, measured = time.perf_counter(), []
    show = partial(print, flush=True)
    for row in rows():
        measured.append(row)
        show(table([row]).splitlines()[-1])
    show(f"\n{table(measured)}\n\n{time.perf_counter() - start:.0f} s, {DEVICE}, {CLOCK}")
    return judged(measured, ROOT, record=options.record)


if __name__ == "__main__":
    sys.exit(main())
