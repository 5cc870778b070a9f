"""The table of docs/zoo.md, from what the tests marked `cell("column")` found for each model of the zoo.

A cell says yes where all its tests passed, with a `proviso` that a test may record, and no where one recorded the
`refusal` that is right there; the page quotes both. A run of the whole zoo fails where the page says something else; `--zoo-table PATH` writes the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ZOO, PAGE, OVERHEAD = ROOT / "tests/zoo", ROOT / "docs/zoo.md", ROOT / "results/overhead.json"
COLUMNS = (
    "analyse", "modulate", "expand", "adapt", "mixed batches", "share streams", "compile", "export", "ONNX", "DDP", "FSDP2",
)  # fmt: skip
Cells = dict[tuple[str, str], str]
"""By model and column: yes or no, and behind a colon what is to be said of it."""

INTRODUCTION = """\
# Models and what works on them

Written by `make zoo`, every cell from the tests in `tests/zoo`: **yes** where they passed, **no** where a clear error is
the right outcome, and is tested; the note quotes it. The models are small versions, built from the libraries' own code
and configurations, in double precision. Expansion stands for task tokens, adaptation for low-rank updates per task; streams
are shared by tasks whose plan is the same up to a block, as counted by torch's FLOP counter; compiled without a graph
break; exported programs run against the model, those in ONNX by onnxruntime.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--zoo-table", metavar="PATH", type=Path, help="run the long tests of the zoo too, and write its page"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cell(*columns): what docs/zoo.md says of the model called `name`")
    config.addinivalue_line("markers", "long: left to `make zoo`")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(config), "zoo table")


def pytest_runtest_setup(item: pytest.Item) -> None:
    columns = [column for marker in item.iter_markers("cell") for column in marker.args]
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise pytest.UsageError(f"{item.nodeid}: docs/zoo.md has no column {unknown}")
    for column in columns:
        item.user_properties.append(("cell", [item.callspec.params["name"], column]))  # pyright: ignore
    if item.get_closest_marker("long") and not item.config.getoption("zoo_table"):
        item.user_properties.append(("long", True))
        pytest.skip("left to `make zoo`")


class Table:
    """Collects the cells of a run, from its workers too, and writes or compares the page."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.cells: Cells = {}
        self.left_out: set[tuple[str, str]] = set()
        self.said = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Enter what one test says of its cells."""
        kept: dict[str, Any] = dict(report.user_properties)
        cells = [(value[0], value[1]) for key, value in report.user_properties if key == "cell"]
        if "long" in kept:
            self.left_out.update(cells)
        elif report.when == "call" and report.passed:
            for cell in cells:
                if "refusal" in kept or "proviso" in kept:
                    self.cells[cell] = f"no: {kept['refusal']}" if "refusal" in kept else f"yes: {kept['proviso']}"
                self.cells.setdefault(cell, "yes")
                if self.cells[cell] == "yes" or "refusal" in kept or "proviso" in kept:
                    continue

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the page of a run without failures, or compare it with the page there is."""
        target: Path | None = self.config.getoption("zoo_table")
        if not self._is_whole():
            if target:
                self._fail(session, "--zoo-table: the page is written by a run of the whole of tests/zoo.")
        elif exitstatus == pytest.ExitCode.OK:
            if target:
                target.write_text(page(self.cells), encoding="utf-8")
                self.said = f"{target} is written: {len(self.cells)} cells."
            else:
                self._compare(session)
        elif target:
            self.said = f"{target} is not written: a page is of a run in which every test passed."

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what has become of the page."""
        if self.said:
            terminalreporter.section("zoo table")
            terminalreporter.line(self.said)

    def _is_whole(self) -> bool:
        option = self.config.getoption
        chosen = any(option(name, None) for name in ("keyword", "markexpr", "deselect", "lf", "collectonly"))
        folders = [(self.config.invocation_params.dir / arg).resolve() for arg in self.config.args]
        return not chosen and any(ZOO.is_relative_to(folder) for folder in folders)

    def _compare(self, session: pytest.Session) -> None:
        written = read_cells(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
        written = {cell: why for cell, why in written.items() if cell not in self.left_out or cell in self.cells}
        differing = sorted(cell for cell in written.keys() | self.cells if written.get(cell) != self.cells.get(cell))
        if differing:
            lines = [f"{model}, {column}: the page says {_said(written.get((model, column)))}, the tests "
                     f"{_said(self.cells.get((model, column)))}" for model, column in differing]  # fmt: skip
            self._fail(
                session, "\n".join(["docs/zoo.md is not what the tests found; `make zoo` writes it anew.", *lines])
            )

    def _fail(self, session: pytest.Session, why: str) -> None:
        self.said = why
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _said(why: str | None) -> str:
    return "nothing" if why is None else f"no ({why})" if why else "yes"


def page(cells: Cells) -> str:
    """The page that says of every model what was found."""
    from zoo import LIBRARIES, ZOO

    unknown = sorted({model for model, _ in cells} - set(ZOO))
    if unknown:
        raise pytest.UsageError(f"docs/zoo.md: {unknown} are no names of the zoo, see tests/zoo/zoo.py")
    columns = [column for column in COLUMNS if any(cell[1] == column for cell in cells)]
    notes: list[str] = []

    def written(why: str | None) -> str:
        if not why:
            return "" if why is None else "yes"
        if why not in notes:
            notes.append(why)
        return f"no[^{notes.index(why) + 1}]"

    lines = [INTRODUCTION]
    for library, entries in LIBRARIES.items():
        lines += [f"## {library}\n", f"| model | {' | '.join(columns)} |", "| --- |" + " :---: |" * len(columns)]
        for model in entries:
            row = [written(cells.get((model, column))) for column in columns]
            lines.append(f"| {model} | {' | '.join(row)} |")
        lines.append("")
    lines += [f"[^{place}]: {note}" for place, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n" + _overhead()


def read_cells(text: str) -> Cells:
    """The cells of a page that `page` wrote."""
    notes = {
        line.partition("]: ")[0] + "]": line.partition("]: ")[2] for line in text.splitlines() if line.startswith("[^")
    }
    cells: Cells = {}
    columns: list[str] = []
    for line in text.partition(HEADING)[0].splitlines():
        if not line.startswith("| "):
            continue
        model, *row = (entry.strip() for entry in line.strip("|").split(" | "))
        if model == "model":
            columns = row
        elif not model.startswith("---"):
            cells.update({(model, column): notes.get(found.removeprefix("no"), "")
                          for column, found in zip(columns, row, strict=True) if found})  # fmt: skip
    return cells


HEADING = "## What streams cost"


def _overhead() -> str:
    """The second table, from what benchmarks/forward_overhead.py measured."""
    if not OVERHEAD.exists():
        return ""
    measured = json.loads(OVERHEAD.read_text(encoding="utf-8"))
    lines = [
        f"\n{HEADING}\n",
        "Time of a forward pass with a plan applied over that of the unmodified model, beside the ratio of their FLOPs, as",
        f"`{measured['command']}` measured them ({measured['hardware']}, {measured['threads']} thread, torch "
        f"{measured['versions']['torch']}): medians of {measured['repeats']} pairs, one after the other, and their quartiles.",
        "",
        "| model | streams part at block | FLOP ratio | time ratio | quartiles | time ratio over FLOP ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in measured["rows"]:
        low, high = row["quartiles"]
        lines.append(
            f"| {row['model']} | {row['parts']} | {row['flop_ratio']:.2f} | {row['time_ratio']:.2f} | "
            f"{low:.2f} to {high:.2f} | {row['time_ratio'] / row['flop_ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"
