"""What is taken in from elsewhere: actions by their commit, licences that a user can live with, and said where not."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SOLVERS = {"quadprog", "qpsolvers"}


def needed(extra: str) -> set[str]:
    """The distributions that an extra of dtme installs, and those that these need."""
    found: set[str] = set()
    waiting = [("dtme", extra)]
    while waiting:
        name, own = waiting.pop()
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": own}):
                continue
            known = requirement.name.lower()
            try:
                metadata.distribution(known)
            except metadata.PackageNotFoundError:
                continue
            asked = {(known, also) for also in ("", *requirement.extras)} - {("dtme", "")}
            waiting += [one for one in asked if f"{one[0]}[{one[1]}]" not in found]
            found |= {f"{one[0]}[{one[1]}]" for one in asked}
    return {name.partition("[")[0] for name in found} - {"dtme"}


def is_copyleft(name: str) -> bool:
    told = metadata.metadata(name)
    licences = [told.get("License-Expression") or told.get("License") or "", *(told.get_all("Classifier") or ())]
    return any(re.search(r"\bA?L?GPL|General Public License", one.partition("\n")[0]) for one in licences)


@pytest.mark.parametrize("extra", ["", "metrics", "viz", "demo"])
def test_nothing_that_users_install_is_copyleft(extra: str):
    names = needed(extra)
    assert {"torch", "safetensors"} <= names
    assert not {name for name in names if is_copyleft(name)}


def test_what_is_copyleft_is_said():
    assert {name for name in needed("baselines") if is_copyleft(name)} == SOLVERS
    for page in ("pyproject.toml", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert all(name in text for name in SOLVERS)
        assert "LGPL" in text


def test_actions_are_pinned_to_a_commit():
    used = [
        line
        for path in (ROOT / ".github").rglob("*.yml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "uses:" in line
    ]
    assert used
    assert all(re.search(r"uses: [\w./-]+@[0-9a-f]{40}  # v\d", line) for line in used)
