"""Measure all ratios, print them, and hold them against those committed.

python -m benchmarks             # fails where a ratio is worse than the committed one by more than 15 %
python -m benchmarks --record    # writes results/speed.json (speed-cuda.json on a GPU) and the tables of docs/speed.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks import analysis, memory, passes, processes
from benchmarks.clock import Middle
from benchmarks.page import speed_page
from benchmarks.rows import Row, load, regressions, save, table
from benchmarks.subject import DEVICE, Size, inference, step

ROOT = Path(__file__).parents[1]
TINY, TINY_SMALL, TINY_LARGE = Size(), Size(pixels=64), Size(pixels=224, samples=8)
SMALL = Size("vit_small_patch16_224", samples=4)


def rows() -> Iterator[Row]:
    """All ratios, one after the other."""
    ratio = analysis.against_its_parts(TINY, batches=4, turns=5)
    yield Row("analysis", "analyze / its parts timed alone", ratio, at_most=1.25)
    ratio, difference = analysis.against_the_literal_way(TINY_SMALL, batches=3, turns=2)
    what = f"the literal way / analyze (rates differ by {difference:.4f} at most)"
    yield Row("analysis", what, ratio, at_least=10)
    for name, run in (("step", step), ("inference", inference)):
        for where, make in (("from the first block", passes.published), ("from half way", passes.late)):
            ratio = passes.per_flop(TINY, run, make, turns=7)
            yield Row(name, f"TM+TE {where}, time per FLOP / the unmodified model's", ratio, at_most=1.10)
        ratio = passes.per_flop(TINY, run, passes.late_updates, turns=7)
        yield Row(name, "rank-4 updates from half way, time per FLOP / the unmodified model's", ratio, at_most=1.10)
        ratio = passes.per_flop(TINY, run, passes.copies, turns=7)
        yield Row(name, "own blocks from half way, time per FLOP / the unmodified model's", ratio, at_most=1.10)
    yield Row("adaptation", "batched product / its bare products", passes.batched_product(TINY, turns=31), at_most=1.15)
    for size, called in ((TINY, "ViT-Ti"), (SMALL, "ViT-S")):
        for name, run in (("step", step), ("inference", inference)):
            ratio = passes.on_top_of_modulation(size, run, turns=7)
            yield Row("adaptation", f"{name} with rank-4 updates / without, {called}", ratio, at_most=1.10)
    for size, called in ((TINY_LARGE, "eager, 224 pixels"), (TINY, "eager, 112 pixels")):
        ratio = passes.one_task(size, passes.published, turns=25)
        yield Row("one task", f"TM+TE / unmodified, {called}", ratio, at_most=1.03)
    ratio = passes.one_task(Size(depth=4, pixels=224, samples=8), passes.published, turns=31, compiled=True)
    yield Row("one task", "TM+TE / unmodified, compiled, 224 pixels, 4 blocks", ratio, at_most=1.03)
    for name, run in (("step", step), ("inference", inference)):
        for rival, ratio in passes.rivals(TINY, run, turns=5).items():
            yield Row("rivals", f"{name}: {rival} / the plan", ratio, at_least=0)
    once = memory.of_analysis(TINY)
    yield Row("memory", "peak of analyze / of a training step", Middle(once, once, once), at_most=1.0)
    limits = {"from the first block": 4.0, "from half way": 2.5}
    for where, once in memory.of_streams(TINY).items():
        yield Row("memory", f"step, 4 streams {where} / plain", Middle(once, once, once), at_most=limits[where])
    if DEVICE == "cpu":
        for count in (2, 4):
            once = processes.speed_up(count)
            yield Row(
                "processes", f"{count} processes: speed-up of analyze", Middle(once, once, once), at_least=count / 2
            )


def main() -> int:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--record", action="store_true", help="write the figures instead of comparing with those committed"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = ROOT / "results" / ("speed.json" if DEVICE == "cpu" else f"speed-{DEVICE}.json")
    start, measured = time.perf_counter(), []
    show = partial(print, flush=True)
    for row in rows():
        measured.append(row)
        show(table([row]).splitlines()[-1])
    show(f"\n{table(measured)}\n\n{time.perf_counter() - start:.0f} s, {DEVICE}, one thread, processor time")
    if options.record or not path.exists():
        save(path, measured)
        (ROOT / "docs/speed.md").write_text(speed_page(ROOT), encoding="utf-8")
        return 0
    worse = regressions(measured, load(path))
    for line in worse:
        print(f"worse: {line}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
