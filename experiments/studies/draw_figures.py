"""Draw the figures of docs/findings.md and docs/ablations.md from the committed results: `make tables`."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

from experiments.ablations import ABLATIONS, ablation_of
from experiments.figures.ablation_arms import draw
from experiments.figures.gains import CARRYING, gains_by_cost, gains_by_parameters
from experiments.figures.score_correlations import score_correlations
from experiments.figures.training_curves import training_curves
from experiments.runner.jsonl import read_lines
from experiments.tables.ablation_table import SUITES
from experiments.tables.overfitting import looks_as_curves

ROOT = Path(__file__).resolve().parents[2]
SHOWN = (
    "ST",
    "MT",
    "MT 2x",
    "MT, even gradients",
    "TM+TE",
    "Adapt r12 last MLP",
    "own last MLP, rate 3",
    "Adapt r12 last MLP, even gradients",
    "own last MLP, rate 3, even gradients",
    "own last block, rate 3, even gradients",
    *(
        f"{name}, tuned weights"
        for name in (
            "MT",
            "MT as long as Adapt r12 last MLP",
            "MT as long as TM+TE",
            "TM+TE",
            "Adapt r12 last MLP",
            "Adapt last half",
            "own last MLP, rate 3",
            "own last block, rate 3",
        )
    ),
)
"""Of all rows at the weights in common use, those that the findings argue with first."""
LOOKED_AT = ("MT", "MT 2x", "TM+TE")
"""Rows whose losses on images trained on and on others are drawn."""

if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "dtme"  # the same results give the same file
    kinds = ("*-plateau*.jsonl", "*-settled.jsonl", "*-few-*.jsonl")
    for path in sorted(path for kind in kinds for path in (ROOT / "results").glob(kind)):
        drawn = ROOT / "docs" / "images" / f"{path.stem}.svg"
        whole = not path.stem.endswith("-plateau")
        runs = [
            {**run, "rows": [row for row in run["rows"] if whole or row["method"] in SHOWN]} for run in read_lines(path)
        ]
        gains_by_cost(runs).savefig(drawn, metadata={"Date": None})
        print(drawn.relative_to(ROOT))
    for path in sorted((ROOT / "results").glob("*-few-*.jsonl")):
        drawn = ROOT / "docs" / "images" / f"{path.stem}-losses.svg"
        training_curves(looks_as_curves(read_lines(path), LOOKED_AT)).savefig(drawn, metadata={"Date": None})
        print(drawn.relative_to(ROOT))
    for ablation in ABLATIONS:
        for path in sorted((ROOT / "results" / "ablations").glob(f"*-{ablation.name}.jsonl")):
            if path.stem.removesuffix(f"-{ablation.name}") not in SUITES:
                continue  # that of another, whose name ends like this one's
            drawn = ROOT / "docs" / "images" / "ablations" / f"{path.stem}.svg"
            drawn.parent.mkdir(parents=True, exist_ok=True)
            print(draw(ablation, read_lines(path), drawn).relative_to(ROOT))
    for suite in SUITES:
        paths = {name: ROOT / "results" / "ablations" / f"{suite}-{name}.jsonl" for name in CARRYING}
        drawn = ROOT / "docs" / "images" / f"{suite}-carried.svg"
        carried = [(ablation_of(name), read_lines(path)) for name, path in paths.items() if path.exists()]
        gains_by_parameters(carried).savefig(drawn, metadata={"Date": None})
        print(drawn.relative_to(ROOT))
    for path in sorted((ROOT / "results").glob("*-probe.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        drawn = ROOT / "docs" / "images" / f"{path.stem}.svg"
        title = f"{found['suite']}: which score tells where an insert helps"
        score_correlations(found["correlations"], title).savefig(drawn, metadata={"Date": None})
        print(drawn.relative_to(ROOT))
