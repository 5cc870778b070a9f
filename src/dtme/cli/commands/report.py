"""`dtme report`: the page, from files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from dtme.cli.answer import Answer, UsageError
from dtme.cli.paths import check_input, check_output


def report(files: Positional[tuple[Path, ...]], out: Path = Path("report.html")) -> Answer:
    """Write a report as one page: what it found, a plan over the trunk, and results, where there are any.

    Args:
        files: The report, and behind it a plan and a file of results, JSON or JSON lines, in either order.
        out: The page; one that is there is replaced once the new one is whole.
    """
    check_output(out, ".html")
    if not 1 <= len(files) <= 3:
        raise UsageError("give the report that `dtme analyze` wrote and, if you like, a plan and results behind it.")
    for path in files:
        check_input(path, "a file that dtme wrote")
    from dtme import ConflictReport, Plan

    beside: dict[str, Any] = {}
    try:
        found = ConflictReport.load(files[0])
        for path in files[1:]:
            read = _read(path)
            kind = "plan" if isinstance(read, dict) and read.get("format") == "dtme.plan" else "results"
            if kind in beside:
                raise UsageError(f"{path} would be a second {kind}: give one.")
            beside[kind] = Plan.from_dict(read, str(path)) if kind == "plan" else read
    except ValueError as error:
        raise UsageError(str(error)) from error
    found.to_html(out, **beside)
    return Answer({"html": str(out), "shows": ["report", *beside]}, f"Written: {out}")


def _read(path: Path) -> Any:
    """What a file of JSON holds; of JSON lines, the list of them."""
    text = path.read_text(encoding="utf-8")
    try:
        return (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no JSON ({error}).") from error
