"""Make the tables of README and docs anew from the committed results: `make tables`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.page import speed_page
from dtme._files import write_text
from experiments.tables.doc_tables import fill

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        print(f"{page.relative_to(ROOT)}: {'made anew' if fill(page, ROOT) else 'as it was'}")
    write_text(ROOT / "docs/speed.md", speed_page(ROOT))
    print("docs/speed.md")
