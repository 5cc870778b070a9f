"""Tables of the documentation, filled in from committed results, so that no figure in them can drift.

A page says where a table goes and what it is made of; whatever stands between the two comments is replaced:

    <!-- table results/nuclei-plateau.jsonl: ST; MT; TM+TE -->
    <!-- end of table -->

Without methods, the table has all rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from dtme._files import write_text
from dtme.bench.lines import read_lines
from dtme.bench.table import markdown
from dtme.bench.text.table import markdown as text_markdown

_PLACE = re.compile(
    r"(<!-- table (?P<path>[^\s:]+)(: (?P<methods>[^>]*?))? -->\n).*?(<!-- end of table -->)", re.DOTALL
)


def filled(text: str, root: Path) -> str:
    """A page with its tables made anew.

    Args:
        text: The page.
        root: Folder that the paths of results are relative to.

    Raises:
        ValueError: A method that a table names is not in its results.
    """

    def table(found: re.Match[str]) -> str:
        methods = [name.strip() for name in found["methods"].split(";")] if found["methods"] else None
        return f"{found[1]}\n{table_of(root / found['path'], methods)}\n{found[5]}"

    return _PLACE.sub(table, text)


def table_of(path: Path, methods: Sequence[str] | None = None) -> str:
    """The table of a file of results as Markdown: of a dense suite or of text tasks, all rows or some.

    Raises:
        ValueError: A method is not in the results, or the file holds no results.
    """
    runs = [json.loads(path.read_text(encoding="utf-8"))] if path.suffix == ".json" else read_lines(path)
    rows = [row for run in runs for row in run["rows"]]
    unknown = [name for name in methods or () if name not in {row["method"] for row in rows}]
    if unknown:
        known = ", ".join(dict.fromkeys(row["method"] for row in rows))
        raise ValueError(f"{path} has no row {unknown[0]!r}; it has {known}.")
    return text_markdown(runs, methods) if rows and "measures" in rows[0] else markdown(runs, methods)


def fill(page: Path, root: Path) -> bool:
    """Make the tables of a page anew; whether anything changed."""
    before = page.read_text(encoding="utf-8")
    after = filled(before, root)
    if after != before:
        write_text(page, after)
    return after != before
