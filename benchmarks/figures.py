"""Draw the figures of docs/findings.md from the committed results: `make tables`."""

from __future__ import annotations

from pathlib import Path

from dtme.bench.lines import read_lines
from dtme.bench.outlook import gains_by_cost

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    for path in sorted((ROOT / "results").glob("*-plateau.jsonl")):
        drawn = ROOT / "docs" / "images" / f"{path.stem}.svg"
        gains_by_cost(read_lines(path)).savefig(drawn, metadata={"Date": None})
        print(drawn.relative_to(ROOT))
