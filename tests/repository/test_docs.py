"""Pages of the docs: their code runs, what they quote is what the library says, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import dtme

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*(DOCS / "guide").glob("*.md"), *(DOCS / "about").glob("*.md")])
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.md"))
QUICKSTART = (DOCS / "guide" / "quickstart.md").read_text(encoding="utf-8")
_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
_CELL = re.compile(r"```\{code-cell\} python\n(.*?)```", re.DOTALL)


def code_of(text: str) -> list[str]:
    return _CODE.findall(text)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if code_of(page.read_text(encoding="utf-8"))], ids=lambda p: p.stem
)
def test_its_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, object] = {"__name__": "page"}
    if page.stem != "quickstart":
        exec(code_of(QUICKSTART)[0], scope)  # the model that other pages speak of
    for code in code_of(page.read_text(encoding="utf-8")):
        exec(code, scope)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_its_cells_run_in_turn(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cells = _CELL.findall(notebook.read_text(encoding="utf-8"))
    assert len(cells) > 3
    scope: dict[str, object] = {"__name__": "notebook"}
    for cell in cells:
        exec(cell, scope)
    assert list(tmp_path.iterdir()) == []  # a build of the docs runs notebooks where they lie


def test_messages_are_those_of_the_library():
    source = " ".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in (ROOT / "src" / "dtme").rglob("*.py")
    )
    quoted = re.findall(
        r"^\| `([^`]+)` \|", (DOCS / "guide" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(quoted) > 10
    assert [message for message in quoted if message not in source] == []


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS, *sorted(DOCS.glob("*.md"))], ids=lambda page: page.stem)
def test_its_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http", "mailto"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_every_public_name_has_its_reference():
    listed = re.findall(
        r"^\.\. auto\w+:: (\w+)$", (DOCS / "about" / "api.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(dtme.__all__)
