"""The table of docs/zoo.md, from what the tests marked `cell("column")` found for each model of the zoo.

A cell says yes where all its tests passed, with a `proviso` that a test may record, and no where one recorded the
`refusal` that is right there; the page quotes both. A run of the whole zoo fails where the page says something else;
`--zoo-table PATH` writes the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ZOO, PAGE, OVERHEAD = ROOT / "tests/zoo", ROOT / "docs/zoo.md", ROOT / "results/overhead.json"
COLUMNS = (
    "analyse", "modulate", "expand", "adapt", "mixed batches", "share streams", "compile", "export", "ONNX", "DDP", "FSDP2",
)  # fmt: skip
Cells = dict[tuple[str, str], str]
"""By model and column: yes or no, and behind a colon what is to be said of it."""

INTRODUCTION = """\
# Models and what works on them

Written by `make zoo`, every cell from the tests in `tests/zoo`: **yes** where they passed, **no** where a clear error is
the right outcome, and is tested; a note quotes it, also where a yes holds with a proviso. The models are small versions in
double precision (in single precision for ONNX), built from the libraries' own code and configurations.

| column | what the tests hold the model to |
| --- | --- |
| analyse | the analysis reads every block, and gives the same rates without padding as with it |
| modulate, adapt | nothing changes at the start; each task is the model changed by hand |
| expand | task tokens: each task is the model changed by hand, or padding stays hidden, masks causal, and all see the tokens |
| mixed batches | each row with a task of its own, as if all rows had it |
| share streams | tasks run as one up to where their plans differ: as many FLOPs as distinct streams |
| compile | one graph (`fullgraph=True`), the same outputs |
| export, ONNX | the exported program, run by torch or onnxruntime, gives the model's outputs |
| DDP, FSDP2 | loss, gradients and analysis over two processes are those of one |

Blocks copied per task, copies and pickles of models, state dicts, mixed and low precision, recomputed and accumulated
gradients, frozen models, running averages and LoRA beside a plan have tests of their own over the same models, without
columns here.
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
            said = [f"{word}: {kept[kind]}" for kind, word in (("refusal", "no"), ("proviso", "yes")) if kind in kept]
            for cell in cells:
                self.cells[cell] = said[0] if said else self.cells.get(cell, "yes")

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
            there, found = ({cell: cells.get(cell, "nothing") for cell in differing} for cells in (written, self.cells))
            lines = [f"{', '.join(c)}: the page says {there[c]!r}, the tests {found[c]!r}" for c in differing]
            self._fail(
                session, "\n".join(["docs/zoo.md is not what the tests found; `make zoo` writes it anew.", *lines])
            )

    def _fail(self, session: pytest.Session, why: str) -> None:
        self.said = why
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def page(cells: Cells) -> str:
    """The page that says of every model what was found."""
    from zoo import LIBRARIES, ZOO

    unknown = sorted({model for model, _ in cells} - set(ZOO))
    if unknown:
        raise pytest.UsageError(f"docs/zoo.md: {unknown} are no names of the zoo, see tests/helpers/zoo.py")
    columns = [column for column in COLUMNS if any(cell[1] == column for cell in cells)]
    notes: list[str] = []

    def written(said: str) -> str:
        word, _, note = said.partition(": ")
        if note and note not in notes:
            notes.append(note)
        return f"{word}[^{notes.index(note) + 1}]" if note else word

    lines = [INTRODUCTION]
    for library, entries in LIBRARIES.items():
        lines += [f"## {library}\n", f"| model | {' | '.join(columns)} |", "| --- |" + " :---: |" * len(columns)]
        for model in entries:
            row = [written(cells.get((model, column), "")) for column in columns]
            lines.append(f"| {model} | {' | '.join(row)} |")
        lines.append("")
    lines += [f"[^{place}]: {note}" for place, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n" + _overhead()


def read_cells(text: str) -> Cells:
    """The cells of a page that `page` wrote."""
    notes = {}
    for line in text.splitlines():
        if line.startswith("[^"):
            mark, _, note = line.partition(": ")
            notes[mark] = f": {note}"
    cells: Cells = {}
    columns: list[str] = []
    for line in text[text.index("\n## ") :].partition(HEADING)[0].splitlines():
        if not line.startswith("| ") or line.startswith("| ---"):
            continue
        model, *row = (entry.strip() for entry in line.strip("|").split(" | "))
        if model == "model":
            columns = row
            continue
        for column, written in zip(columns, row, strict=True):
            word, mark, number = written.partition("[^")
            if word:
                cells[model, column] = word + notes.get(mark + number, "")
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
        "From block 0 on, all of the trunk runs on all streams, and the last column compares with the unmodified model on as",
        "many samples: where that takes more than its FLOPs say, it is the larger batch that is slower on this machine.",
        "",
        "| model | streams part at block | FLOP ratio | time ratio | quartiles | time ratio, as many samples unmodified |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in measured["rows"]:
        low, high = row["quartiles"]
        control = f"{row['time_ratio_of_batch']:.2f}" if row["parts"] == 0 else ""
        lines.append(
            f"| {row['model']} | {row['parts']} | {row['flop_ratio']:.2f} | {row['time_ratio']:.2f} | "
            f"{low:.2f} to {high:.2f} | {control} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":  # write the page anew from its own cells, with what was measured last
    PAGE.write_text(page(read_cells(PAGE.read_text(encoding="utf-8"))), encoding="utf-8")
