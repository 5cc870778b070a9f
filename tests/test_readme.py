"""The README says what the files of `results/` say, and names only what exists."""

import json
import re
from pathlib import Path

import pytest

import dtme
from dtme.bench.table import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["demo", "nuclei"])
def test_its_tables_are_those_of_the_results(name: str):
    results = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert markdown(results) in README


def test_what_it_calls_exists():
    called = set(re.findall(r"dtme\.(\w+)\(", README))
    assert called >= {"analyze", "apply", "remove", "tasks"}
    assert all(hasattr(dtme, name) for name in called)


def test_its_pictures_are_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert len(pictures) == 2
    assert all((ROOT / picture).is_file() for picture in pictures)
