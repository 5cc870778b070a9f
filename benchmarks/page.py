"""docs/speed.md, from what lies in results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import throughput
from benchmarks.rows import load, table


def speed_page(root: Path) -> str:
    """The page: how to read it, the ratios of each machine, images per second, and when an analysis stops."""
    text = (root / "benchmarks/speed.md.in").read_text(encoding="utf-8")
    for name in ("speed", "speed-cuda"):
        path = root / f"results/{name}.json"
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
            text += f"\n## {data['hardware']}\n\n{data['clock']}; {versions}.\n\n{table(load(path))}\n"
    for name, section in (("throughput", throughput.section), ("stopping", stopping)):
        path = root / f"results/{name}.json"
        text += section(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ""
    return text


def stopping(found: dict[str, dict[str, Any]]) -> str:
    """What `python -m experiments.studies.stopping` found."""
    own = next(iter(found.values()))
    spread = {
        space: {suite: max(own[f"{space}_score"]) - min(own[f"{space}_score"]) for suite, own in found.items()}
        for space in ("range", "null")
    }
    tested = [space for space, of in spread.items() if max(of.values()) > own["tolerance"]]
    apart = "; ".join(
        f"{space} space, " + ", ".join(f"{suite} {value:.3f}" for suite, value in of.items())
        for space, of in spread.items()
    )
    lines = [
        "",
        "## When an analysis stops",
        "",
        f'`confidence=0.95`, {own["draws"]} draws each (`python -m experiments.studies.stopping SUITE`). "Right" is the choice',
        f"of blocks that all training samples give, or one within the tolerance of {own['tolerance']:g} of it. The test is",
        "that the plan ranks, rates over all tokens, and holds at every look by the limit theorem that its confidence sequence",
        "follows from; that what is rare may not have shown yet is met by one further sample of ordinary size, in which one of",
        "the two blocks conflicts at every token and the other at none.",
        "",
        "The samples have to come in random order, from a loader that shuffles, because the first speak for the rest: in sorted",
        "data they would speak for their like alone. A loader that shuffles anew for each round gives the token space and the",
        "conflicts different samples, which does no harm.",
        "",
        "Where the scores of all blocks lie within the tolerance of each other, every choice is right. How far the highest lies",
        f"above the lowest: {apart}.",
        f"So only the {' and the '.join(tested)} space could have shown a wrong choice."
        if tested
        else "So none could be wrong.",
        "",
        "| suite | training samples | samples taken, median | most | right | the very same choice |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for suite, own in found.items():
        lines.append(
            f"| {suite} | {own['training_samples']} | {own['samples_median']:.0f} ({own['share_median']:.1%}) | "
            f"{own['samples_most']} ({own['share_most']:.1%}) | {own['same_or_within_tolerance']:.1%} | "
            f"{own['same_choice']:.1%} |"
        )
    return "\n".join(lines) + "\n"
