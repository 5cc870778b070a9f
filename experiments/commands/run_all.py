"""Run the rows of some seeds and write down what they found: lines, table, and what a reader has to know."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dtme._files import write_text
from experiments.runner import jobs
from experiments.runner.jsonl import write_lines
from experiments.runner.progress import shown
from experiments.tables.text_table import markdown, table
from experiments.text.experiment import TextBench
from experiments.text.results import collect
from experiments.text.rows import jobs_of


def run_rows(
    benches: Sequence[TextBench],
    methods: Sequence[str],
    folder: Path,
    *,
    command: str = "",
    workers: int | None = None,
    remarks: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Do what is not done yet, seed by seed, then write `results.jsonl` and `table.md` and print the table.

    Args:
        benches: One per seed.
        methods: Names of the rows.
        folder: Of the results.
        command: What was typed.
        workers: Rows that run side by side, each on one core; by default one per core.
        remarks: What a reader has to know besides what the data says.

    Raises:
        ValueError: A method is unknown, or a file holds what it must not.
    """
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file has no width to fit
    began = time.monotonic()
    suite = benches[0].load()  # before anything is trained: what is wrong with the data is said at once
    for remark in (*remarks, *suite.remarks):
        console.print(remark, highlight=False)
    work: dict[str, jobs.Job] = {}
    for bench in benches:
        for job in jobs_of(bench, methods, f"seed {bench.seed}: " if len(benches) > 1 else ""):
            work.setdefault(job.name, job)
    with shown(console) as display:
        jobs.run(list(work.values()), display, workers=workers)
    suite = replace(suite, remarks=(*remarks, *suite.remarks))
    spent = time.monotonic() - began
    runs = [collect(bench, suite, methods, command=command, seconds=spent) for bench in benches]
    write_lines(folder / "results.jsonl", runs)
    write_text(folder / "table.md", markdown(runs))
    console.print(table(runs))
    return runs


def fast_precision(device: str) -> str:
    """`"bfloat16"` where the device computes in it, otherwise `"float32"`."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    able = any(getattr(torch.cpu, f"_is_{kind}_supported", lambda: False)() for kind in ("avx512_bf16", "amx_tile"))
    return "bfloat16" if able else "float32"
