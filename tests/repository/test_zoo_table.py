"""The table of docs/zoo.md says what the tests found, and a run notices where it does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zoo_table
from zoo_table import Table, page, read_cells

CELLS = {
    ("ViT", "analyse"): "yes",
    ("ViT", "expand"): "yes",
    ("Swin", "expand"): "no: block 'a' has windows | see there",
    ("swin", "expand"): "no: block 'b' has windows",
    ("Swin v2", "expand"): "no: block 'a' has windows | see there",
    ("bert", "analyse"): "yes: without: with",
}


def report(cells: list[tuple[str, str]], outcome: str = "passed", when: str = "call", **kept: Any) -> Any:
    properties = [*(("cell", list(cell)) for cell in cells), *kept.items()]
    return SimpleNamespace(user_properties=properties, when=when, passed=outcome == "passed")


def table() -> Table:
    return Table(
        SimpleNamespace(
            getoption=lambda *_: None, args=["tests"], invocation_params=SimpleNamespace(dir=zoo_table.ROOT)
        )
    )  # type: ignore


def session() -> Any:
    return SimpleNamespace(exitstatus=pytest.ExitCode.OK)


def test_a_page_is_read_as_it_was_written():
    text = page(CELLS)
    assert read_cells(text) == CELLS
    assert text.count("has windows") == 2  # each reason once


def test_a_cell_is_what_all_its_tests_say():
    found = table()
    found.pytest_runtest_logreport(report([("ViT", "analyse"), ("ViT", "expand")]))
    found.pytest_runtest_logreport(report([("Swin", "expand")], refusal="windows"))
    found.pytest_runtest_logreport(report([("Swin", "expand")]))
    found.pytest_runtest_logreport(report([("swin", "adapt")]))
    found.pytest_runtest_logreport(report([("swin", "adapt")], proviso="some layers"))
    found.pytest_runtest_logreport(report([("bert", "expand")], "failed"))
    found.pytest_runtest_logreport(report([("bert", "DDP")], when="setup"))
    found.pytest_runtest_logreport(report([("bert", "ONNX")], "skipped", "setup", long=True))
    assert found.cells == {
        ("ViT", "analyse"): "yes",
        ("ViT", "expand"): "yes",
        ("Swin", "expand"): "no: windows",
        ("swin", "adapt"): "yes: some layers",
    }
    assert found.left_out == {("bert", "ONNX")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({("ViT", "expand"): "no: windows"}, "ViT, expand: the page says 'yes', the tests 'no: windows'"),
        ({("bert", "expand"): "yes"}, "bert, expand: the page says 'nothing', the tests 'yes'"),
        ({("bert", "analyse"): None}, "bert, analyse: the page says 'yes: without: with', the tests 'nothing'"),
    ],
)
def test_a_run_that_finds_something_else_fails(
    change: dict[Any, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(zoo_table, "PAGE", tmp_path / "zoo.md")
    zoo_table.PAGE.write_text(page(CELLS | {("ViT", "ONNX"): "yes"}))
    found, run = table(), session()
    found.cells = {cell: why for cell, why in (CELLS | change).items() if why is not None}
    found.left_out = {("ViT", "ONNX")}
    found.pytest_sessionfinish(run, pytest.ExitCode.OK)
    assert run.exitstatus == (pytest.ExitCode.TESTS_FAILED if said else pytest.ExitCode.OK)
    assert said in found.said


def test_a_part_of_the_zoo_is_not_compared(monkeypatch: pytest.MonkeyPatch):
    found, run = table(), session()
    found.config.args = ["tests/zoo/plans/test_zoo.py"]
    found.pytest_sessionfinish(run, pytest.ExitCode.OK)
    assert (found.said, run.exitstatus) == ("", pytest.ExitCode.OK)


def test_the_page_there_is_holds_what_was_measured_last():
    text = zoo_table.PAGE.read_text(encoding="utf-8")
    assert text == page(read_cells(text)), "python tests/helpers/zoo_table.py writes it anew"


def test_names_that_are_not_in_the_zoo_are_refused():
    with pytest.raises(pytest.UsageError, match=r"\['unicorn'\] are no names of the zoo"):
        page({("unicorn", "expand"): "yes"})
