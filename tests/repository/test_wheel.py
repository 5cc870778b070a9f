"""What a user installs: a wheel holds the library alone, and it stays small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
LINES = 18_700


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    """A wheel of the repository as it stands, by the backend that `pip install` calls."""
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with ZipFile(built) as opened:
        yield opened


def test_a_wheel_holds_the_library_and_no_more(wheel: ZipFile):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dtme"}


def test_a_wheel_holds_every_file_of_the_library(wheel: ZipFile):
    here = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "dtme").rglob("*.py")}
    assert {name for name in wheel.namelist() if name.endswith(".py")} == here
    assert "dtme/py.typed" in wheel.namelist()


def test_a_wheel_stays_small(wheel: ZipFile):
    lines = sum(len(wheel.read(name).splitlines()) for name in wheel.namelist() if name.endswith(".py"))
    assert lines < LINES, (
        f"{lines} lines of Python in the wheel, of {LINES}: what is for the study belongs in experiments/"
    )


def test_a_wheel_needs_four_packages(wheel: ZipFile):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    needs = [
        line.partition(": ")[2]
        for line in wheel.read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    always = sorted(need.partition(">")[0] for need in needs if "extra ==" not in need)
    assert always == ["huggingface-hub", "numpy", "safetensors", "torch"]
