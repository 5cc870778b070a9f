"""Imports go down only, from package to package and inside one: lazy ones and those for type checkers count."""

from __future__ import annotations

import ast
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = (
    ("_",),
    ("distributed", "metrics"),
    ("streams",),
    ("trunk", "plan"),
    ("inserts", "viz"),
    ("attach", "report"),
    ("checkpoint",),
    ("measure",),
    ("",),  # dtme/__init__.py
    ("integrations", "cli"),
)
"""Packages of `dtme` from the ground up; those of one floor do not import each other."""
LEVEL = {package: level for level, floor in enumerate(FLOORS) for package in floor}


def sources_of(top: str, root: Path) -> dict[str, Path]:
    """The files of a package, by module."""
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted((root / top).rglob("*.py"))}


SOURCES, STUDY = sources_of("dtme", ROOT / "src"), sources_of("experiments", ROOT)


def package_of(module: str) -> str:
    """The package of a module of `dtme`; `_` for those that everyone may use, nothing for `dtme` itself."""
    _, _, inner = module.partition(".")
    name = inner.partition(".")[0]
    if name == "__main__":  # `python -m dtme`, the command
        return "cli"
    return "" if name == "__init__" else "_" if name.startswith("_") else name


def imported(path: Path, known: Collection[str]) -> set[str]:
    """Every module that a file imports anywhere in it, a module for each name that is one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)} has a relative import"
            of = node.module or ""
            found |= {f"{of}.{name.name}" if f"{of}.{name.name}" in known else of for name in node.names}
    return found


def imports_inside(sources: dict[str, Path]) -> dict[str, set[str]]:
    """What each module of a package imports of it, packages by their `__init__`."""
    top = next(iter(sources)).partition(".")[0]
    return {
        module: {
            other if other in sources else f"{other}.__init__"
            for other in imported(path, sources)
            if other.partition(".")[0] == top
        }
        for module, path in sources.items()
    }


IMPORTS = imports_inside(SOURCES)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down(module: str):
    own = package_of(module)
    assert own in LEVEL, f"{module} is in no package that has a floor: give {own!r} one in FLOORS"
    for other in IMPORTS[module]:
        there = package_of(other)
        assert there == own or LEVEL[there] < LEVEL[own], f"{module} imports {other}, which is not below it"


@pytest.mark.parametrize("sources", [SOURCES, STUDY], ids=["library", "study"])
def test_no_circle_inside_or_between_packages(sources: dict[str, Path]):
    try:
        TopologicalSorter(imports_inside(sources)).prepare()
    except CycleError as error:
        pytest.fail(f"imports go in a circle: {' <- '.join(error.args[1])}")


def test_a_package_only_hands_names_on():
    for module, path in SOURCES.items():
        if not module.endswith(".__init__") or module == "dtme.__init__":
            continue
        first, *others = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(first, ast.Expr), f"{module} has no caption"
        kinds = (ast.ImportFrom, ast.Assign, ast.Try)
        assert all(isinstance(node, kinds) for node in others), f"{module} does more than hand names on"


def test_a_package_lists_what_it_holds():
    for folder in {path.parent for path in SOURCES.values()}:
        contents = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        held = {path.stem for path in folder.glob("*.py")} if folder.name != "dtme" else set()
        held |= {path.parent.name for path in folder.glob("*/__init__.py")}
        missing = [
            name for name in sorted(held - {"__init__"}) if f"`{name}`" not in contents and f"`{name}/`" not in contents
        ]
        assert not missing, f"{folder.relative_to(ROOT)}/__init__.py does not list {missing}"


@pytest.mark.parametrize(
    ("sources", "above"),
    [(SOURCES, {"experiments", "benchmarks", "tests", "examples"}), (STUDY, {"tests", "examples"})],
    ids=["library", "study"],
)
def test_nothing_is_imported_from_above(sources: dict[str, Path], above: set[str]):
    for module, path in sources.items():
        assert not {name.partition(".")[0] for name in imported(path, sources)} & above, module


@pytest.mark.parametrize("sources", [SOURCES, STUDY], ids=["library", "study"])
def test_rooms_have_room(sources: dict[str, Path]):
    for folder in {path.parent for path in sources.values()}:
        files = [path for path in folder.iterdir() if path.is_file()]
        assert len(files) <= 16, f"{folder.relative_to(ROOT)} holds {len(files)} files"
    for path in sources.values():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 300, f"{path.relative_to(ROOT)} has {lines} lines"


def test_every_package_of_the_study_has_a_caption():
    for module, path in STUDY.items():
        if module.endswith("__init__"):
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module
