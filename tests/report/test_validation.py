"""Reports out of files from anywhere: values that no analysis gives are refused by file and field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reports import rates, report_of

import dtme
from dtme.plan.cost import BlockFlops, ModelFlops


def written(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = folder / "report.json"
    flops = ModelFlops(10, {"blocks.0": BlockFlops(5, updates=(1, 2)), "blocks.1": BlockFlops(6)})
    report_of(rates([0.25, 0.5]), rates([0.5, 0.25]), flops=flops).save(path)
    data = {name: value for name, value in json.loads(path.read_text()).items() if name != "digest"}
    change(data)
    path.write_text(json.dumps(data))
    return path


def test_what_an_analysis_gives_is_taken(tmp_path: Path):
    assert dtme.ConflictReport.load(written(tmp_path, lambda data: None)).range_score().tolist() == [0.25, 0.5]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["range_rate"][0][0].__setitem__(1, 0.75), "range_rate is .* the same for"),
        (lambda d: d["null_rate"][1][2].__setitem__(2, 0.5), "null_rate is .* 0 for a task and itself"),
        (lambda d: d.update(range_rate=[[[0, 2, 2], [2, 0, 2], [2, 2, 0]]] * 2), "rates from 0 to 1"),
        (lambda d: d.update(null_rate=[[[0, None, 0], [None, 0, 0], [0, 0, 0]]] * 2), "rates from 0 to 1"),
        (lambda d: d.update(range_halfwidth=[[[-1, -1, -1]] * 3] * 2), "half-widths"),
        (lambda d: d.update(range_rate=[[10**400]]), "missing or malformed .*Overflow"),
        (lambda d: d.update(tasks=["a", "a", "b"]), "tasks is .* each once"),
        (lambda d: d.update(tasks=[1, 2, 3]), "tasks is"),
        (lambda d: d.update(blocks="ab"), "blocks is"),
        (lambda d: d.update(widths=[8, -8]), "widths is"),
        (lambda d: d.update(range_rank=[9, 3]), "range_rank is .* at most the width"),
        (lambda d: d.update(zero_share=[0.5, 1.5]), "zero_share is"),
        (lambda d: d.update(zero_share=[0.5]), "zero_share is .* 2 numbers"),
        (lambda d: d.update(samples=True), "samples is"),
        (lambda d: d.update(samples=1e400), "samples is"),
        (lambda d: d.update(level=0), "level is"),
        (lambda d: d.update(variance_ratio="100"), "variance_ratio is"),
        (lambda d: d.update(undecided=["other"]), "undecided is"),
        (lambda d: d.update(pairing=[["shared"]]), "pairing is"),
        (lambda d: d.update(pairing=5), "missing or malformed"),
        (lambda d: d.update(notes=[1]), "notes is"),
        (lambda d: d.update(flops={"once": "much", "blocks": {}}), "flops.once is"),
        (lambda d: d["flops"]["blocks"]["blocks.0"].update(updates=[1]), "updates is"),
        (lambda d: d["flops"]["blocks"]["blocks.0"].update(speed=1), "missing or malformed"),
        (lambda d: d["flops"].update(blocks=[]), "missing or malformed"),
        (lambda d: d.update(flops=7), "missing or malformed"),
    ],
)  # fmt: skip
def test_what_none_gives_is_refused_by_file_and_field(change: Callable[[Any], Any], says: str, tmp_path: Path):
    path = written(tmp_path, change)
    with pytest.raises(ValueError, match=says) as caught:
        dtme.ConflictReport.load(path)
    assert re.escape(str(path)) in re.escape(str(caught.value))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "RecursionError|is not readable JSON"),
        ('{"format": "dtme.report", "version": 1, "x": ' + "[" * 40 + "]" * 40 + "}", "32 deep"),
        ('{"format": "dtme.report", "version": ' + "9" * 5000 + "}", "not readable JSON"),
        ('{"format": "dtme.report", "version": true}', "version True"),
        (r'{"format": "\ud800"}', "half of a character"),
        ("\0", "not readable JSON"),
    ],
)
def test_texts_that_no_reader_survives_are_refused(text: str, says: str, tmp_path: Path):
    for path, load in ((tmp_path / "report.json", dtme.ConflictReport.load), (tmp_path / "plan.json", dtme.Plan.load)):
        path.write_text(text.replace("dtme.report", "dtme.report" if path.name == "report.json" else "dtme.plan"))
        with pytest.raises(ValueError, match=says) as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_a_file_larger_than_any_is_not_read(tmp_path: Path):
    with (tmp_path / "report.json").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match=r"report\.json has 67108865 bytes"):
        dtme.ConflictReport.load(tmp_path / "report.json")
