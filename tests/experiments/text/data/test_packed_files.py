"""Files that are small and claim to be huge: refused by file and line, in little time and memory."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from pathlib import Path

import pytest

from experiments.text.data import files
from experiments.text.data.files import read_file
from experiments.text.data.tasks import classes

SPAM = classes("spam", ("no", "yes"))


@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.tsv.gz", "t.csv.gz"])
def test_one_line_of_everything_is_refused_at_its_first_part(name: str, tmp_path: Path):
    content = b"a" * 50_000_000
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    del content
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ValueError, match=rf"{name}, line 1 has more than 1048576 characters"):
        read_file(tmp_path / name, SPAM)
    assert time.process_time() - began < 5
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["t.tsv.gz", "t.csv.gz"])
def test_a_packed_file_without_end_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "MOST", 100_000)
    mark = "," if ".csv" in name else "\t"
    (tmp_path / name).write_bytes(gzip.compress(f"text{mark}label\n".encode() + f"a{mark}no\n".encode() * 100_000))
    with pytest.raises(ValueError, match=rf"{name}, line \d+ is beyond the first 100000 characters"):
        read_file(tmp_path / name, SPAM)


def test_bytes_that_are_no_text_and_have_no_line_end(tmp_path: Path):
    (tmp_path / "t.tsv").write_bytes(b"text\tlabel\n" + b"\xff" * 3_000_000)
    with pytest.raises(ValueError, match=r"t\.tsv, line 2 is no UTF-8"):
        read_file(tmp_path / "t.tsv", SPAM)
