"""Writes the lowest version of everything that pyproject.toml declares, as constraints for pip (`make lower-bounds`).

python tests/helpers/lower_bounds.py > lowest.txt
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def declared(project: dict[str, Any]) -> Iterator[Requirement]:
    """Every requirement of a `[project]` table, its extras' too, but for the project's own name."""
    own = canonicalize_name(project["name"])
    for lines in (project.get("dependencies", ()), *project.get("optional-dependencies", {}).values()):
        yield from (one for one in map(Requirement, lines) if canonicalize_name(one.name) != own)


def lowest(requirement: Requirement) -> Version:
    """The lowest version that a requirement takes.

    Raises:
        ValueError: It has no lower bound, so that nothing says which versions are meant to work.
    """
    bounds = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==", "~=")]
    if not bounds:
        raise ValueError(
            f"{str(requirement)!r} has no lower bound: declare the oldest version that works, as {requirement.name}>=1.0"
        )
    return max(bounds)


def constraints(requirements: Iterable[Requirement]) -> list[str]:
    """One line a package, `name==version`; one that is declared twice has to meet both."""
    versions: dict[str, Version] = {}
    for one in requirements:
        name = canonicalize_name(one.name)
        versions[name] = max(lowest(one), versions.get(name, lowest(one)))
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


if __name__ == "__main__":
    print("\n".join(constraints(declared(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]))))  # noqa: T201
