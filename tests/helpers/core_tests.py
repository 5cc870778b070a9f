"""Names the test files of the library that need no more than what is installed here: what runs at the lower bounds.

    python tests/helpers/core_tests.py | xargs python -m pytest

Imports are followed through helpers and examples, lazy ones too: none is found missing in the middle of a run. The study is
not installed with the library, and so its tests are left out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOMES = (ROOT / "tests" / "helpers", ROOT / "examples")
"""Where modules are found that tests of the library may import without their being installed."""


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it; of `from package import name` the name too, which may be one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def files_of(module: str, beside: Path) -> list[Path]:
    """The files of this repository that importing a module runs, its packages' too; none for an installed one."""
    parts = module.split(".")
    for home in (beside, *HOMES):
        stems = [home.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)]
        found = [file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
        if found or stems[0].is_dir():
            return found
    return []


@cache
def is_installed(package: str) -> bool:
    """Whether a package is there, in Python itself or beside it."""
    return package in sys.stdlib_module_names or find_spec(package) is not None


def missing(path: Path) -> set[str]:
    """The packages that are not installed, of all that a file and those behind it import."""
    seen, ahead, found = set[Path](), [path], set[str]()
    while ahead:
        file = ahead.pop()
        if file in seen:
            continue
        seen.add(file)
        for module in imported(file):
            package = module.partition(".")[0]
            if behind := files_of(module, file.parent):
                ahead += behind
            elif package != "dtme" and not files_of(package, file.parent) and not is_installed(package):
                found.add(package)
    return found


if __name__ == "__main__":
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    running = [test for test in tests if not missing(test)]
    print(f"{len(running)} of {len(tests)} test files need nothing that is missing here", file=sys.stderr)  # noqa: T201
    print("\n".join(str(test.relative_to(ROOT)) for test in running))  # noqa: T201
