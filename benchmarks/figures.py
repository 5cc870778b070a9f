"""Draw the figures of docs/findings.md from the committed results: `make tables`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from dtme.bench.lines import read_lines
from dtme.bench.outlook import gains_by_cost

ROOT = Path(__file__).resolve().parents[1]
SHOWN = (
    "ST",
    "MT",
    "MT 2x",
    "MT, even gradients",
    "TM+TE",
    "Adapt r8 last block",
    "own last block",
    "Adapt r8 last block, even gradients",
    "MT as long as Adapt r8 last block, even gradients",
    *(
        f"{name}, tuned weights"
        for name in (
            "MT",
            "MT as long as Adapt r8 last block",
            "MT as long as TM+TE",
            "TM+TE",
            "TM+TE random, same cost",
            "Adapt r8 last block",
            "Adapt last half",
            "own last block",
        )
    ),
)
"""Of all rows at the weights in common use, those that the findings argue with first."""

if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "dtme"  # the same results give the same file
    for path in sorted((ROOT / "results").glob("*-plateau*.jsonl")):
        drawn = ROOT / "docs" / "images" / f"{path.stem}.svg"
        whole = path.stem.endswith("-tuned")
        runs = [
            {**run, "rows": [row for row in run["rows"] if whole or row["method"] in SHOWN]} for run in read_lines(path)
        ]
        gains_by_cost(runs).savefig(drawn, metadata={"Date": None})
        print(drawn.relative_to(ROOT))
