"""`dtme analyze`: where the tasks of a model conflict."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from dtme.cli.answer import Answer, listed
from dtme.cli.paths import check_output
from dtme.cli.progress import show_progress
from dtme.cli.ranks import joined, rank, share_of
from dtme.cli.user_file import load_user_file

if TYPE_CHECKING:
    from dtme import ConflictReport


def analyze(
    file: Positional[Path],
    out: Path = Path("report.json"),
    html: Path | None = None,
    samples: int | Literal["auto", "all"] = "auto",
    variance_ratio: float = 100.0,
    seed: int = 0,
) -> Answer:
    """Measure where the tasks of your model conflict in token space. Nothing is trained.

    Args:
        file: Your file, as `dtme init` writes it.
        out: The report, JSON; one that is there is replaced once the new one is whole.
        html: Also a page of it.
        samples: How many are compared at most. `auto` reads up to 512, fewer where that settles the choice of blocks.
        variance_ratio: r, the energy of tokens in the range space over that in the null space.
        seed: Of the random numbers of torch, before your model is made.
    """
    check_output(out, ".json")
    check_output(html, ".html")
    import torch

    import dtme

    user = load_user_file(file)
    begun = time.monotonic()
    torch.manual_seed(seed)
    with joined():
        model = user.model()
        report = dtme.analyze(
            model,
            user.task_losses,
            share_of(user.batches()),
            branches=user.branches_of(model),
            token_mask=user.token_mask,
            variance_ratio=variance_ratio,
            max_samples=None if samples == "all" else samples,
            progress=show_progress,
        )
    if rank() == 0:
        report.save(out)
        if html is not None:
            report.to_html(html)
    weights, told = even_weights(report)
    written = "\n".join(f"Written: {path}" for path in (out, html) if path is not None)
    data = {
        "report": str(out),
        "html": None if html is None else str(html),
        "tasks": report.tasks,
        "samples": report.samples,
        "range_score": dict(zip(report.blocks, report.range_score().tolist(), strict=True)),
        "null_score": dict(zip(report.blocks, report.null_score().tolist(), strict=True)),
        "even_weights": weights,
        "notes": report.notes,
        "seconds": round(time.monotonic() - begun, 2),
    }
    return Answer(data, f"{report}\n\n{told}\n\n{written}\nNext: dtme plan {out} --out plan.json")


def even_weights(report: ConflictReport) -> tuple[dict[str, float] | None, str]:
    """The weights under which no task's gradient drowns the others', and what to say of them."""
    try:
        weights = report.even_weights()
    except ValueError as why:
        return None, f"No even weights of the losses: {why}"
    told = listed({task: f"{weight:.3g}" for task, weight in weights.items()})
    return weights, f"Weights of the losses that even the gradients. Try them first, they cost nothing:\n{told}"
