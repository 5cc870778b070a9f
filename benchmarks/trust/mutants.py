"""`make mutants`: small changes of the core, and which of them no test notices.

Each part of the core is held to the tests that are about it, in a copy of the repository below `mutants/`. Left out of the
figures are other words of a message, and changes that change nothing, which `same.txt` lists with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = ROOT / "mutants"
SAME = Path(__file__).with_name("same.txt")
WANTED = 90.0
"""Per cent of the mutants of each module that tests have to kill."""
_ALIVE = {0, 33}
"""What mutmut notes of one that tests let pass, and of one that no test runs."""


@dataclass(frozen=True)
class Part:
    """A part of the core.

    Attributes:
        modules: Files below `src/dtme`.
        tests: Files below `tests`, fast ones: each mutant that lives has run them all.
        without: What of them is left out, as `pytest -k` takes it: what stands in for mutants is not traced.
    """

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    without: str = "not compiled and not export and not graph"


PARTS = {
    "measure": Part(
        ("measure/token_space.py", "measure/conflict.py", "measure/rates.py"),
        (
            "measure/test_token_space.py",
            "measure/test_conflict.py",
            "measure/test_rates.py",
            "method/test_numbers_by_hand.py",
        ),
    ),
    "plan": Part(
        ("plan/plan.py", "plan/rates.py", "plan/placement.py"),
        ("plan/test_plan.py", "plan/test_placement.py"),
        "not closed_formula",
    ),
    "inserts": Part(
        ("inserts/modulation.py", "inserts/low_rank.py"),
        ("inserts/test_modulation_of_lanes.py", "inserts/test_low_rank.py", "method/test_numbers_by_hand.py"),
    ),
    "task_tokens": Part(
        ("inserts/task_tokens.py",),
        (
            "inserts/test_masks.py",
            "inserts/test_positions.py",
            "inserts/test_insert.py",
            "inserts/test_insert_inside_blocks.py",
        ),
    ),
    "routing": Part(("streams/routing.py",), ("streams/test_routing.py", "inserts/test_call_state.py")),
    "streams": Part(
        ("streams/tensor.py", "streams/groups.py", "streams/lanes.py", "streams/folding.py"),
        ("streams/test_tensor.py", "streams/test_past_torch_function.py", "inserts/test_modulation_of_lanes.py"),
    ),
}


def run(name: str) -> None:
    """Let mutmut change a part and run its tests, in a copy of the repository of its own."""
    part, folder = PARTS[name], WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copied = ("src", "tests", "examples", "experiments", "benchmarks")
    for each in copied:
        shutil.copytree(ROOT / each, folder / each, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
    settings = {
        "source_paths": ["src/"],
        "only_mutate": [f"src/dtme/{module}" for module in part.modules],
        "also_copy": list(copied[1:]),
        "pytest_add_cli_args_test_selection": [*(f"tests/{test}" for test in part.tests), "-k", part.without],
    }
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(f"{project}\n[tool.mutmut]\n{table}\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log").open("wb") as log:
        command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "1"]
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)


def find_alive(name: str) -> tuple[Counter[str], dict[str, list[tuple[str, str, str]]]]:
    """What the last run of a part has found.

    Returns:
        By module how many mutants were tried, and of those that live their names and lines before and after.
    """
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    os.chdir(WORK / name)  # where mutmut looks
    tried: Counter[str] = Counter()
    alive: dict[str, list[tuple[str, str, str]]] = {}
    for meta in sorted(Path("mutants/src").rglob("*.meta")):
        path = meta.relative_to("mutants").with_suffix("")
        module = ".".join(path.with_suffix("").parts[1:])
        for mutant, code in json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"].items():
            if code is None:  # not tried yet
                continue
            tried[module] += 1
            if code in _ALIVE:
                lines = get_diff_for_mutant(mutant, path=path).splitlines()[2:]
                old, new = (" ".join(line[1:].strip() for line in lines if line[:1] == sign) for sign in "-+")
                alive.setdefault(module, []).append((mutant, old, new))
    return tried, alive


def are_words(old: str, new: str) -> bool:
    """Whether two lines differ in the words of a message alone.

    Example:
        >>> are_words('raise ValueError("give one")', 'raise ValueError("XXgive oneXX")')
        True
        >>> are_words('return names["a b"]', 'return names["A B"]'), are_words("a = 1", "a = 2")
        (False, False)
    """
    plain = [re.sub(r'"[^"]* [^"]*"', '""', line) for line in (old, new)]
    told = old.lower() == new.replace("XX", "").lower()
    return told and plain[0] == plain[1] and "[" not in old.partition('"')[0][-1:]


def is_strictness(old: str, new: str) -> bool:
    """Whether `zip` is but told not to look at lengths, which are the same by the way they are made.

    Example:
        >>> is_strictness("zip(a, b, strict=True)", "zip(a, b, )"), is_strictness("zip(a, strict=True)", "zip(b, )")
        (True, False)
    """
    plain = [re.sub(r",? *(strict=\w+)?,? *\)", ")", line) for line in (old, new)]
    return "strict=True" in old and plain[0] == plain[1]


def read_same() -> set[tuple[str, str, str]]:
    """Module, line before and line after of the changes that change nothing."""
    found = set[tuple[str, str, str]]()
    module = ""
    lines = iter(SAME.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith("["):
            module = line.strip("[]")
        elif line.startswith("- "):
            found.add((module, line[2:].strip(), next(lines)[2:].strip()))
    return found


def main() -> None:
    """Run the parts that are named, print the figures per module, and fail where too many live."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust.mutants", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--read", action="store_true", help="tell of the last run, and run nothing")
    options = parser.parse_args()
    same, failed = read_same(), False
    for name in options.parts:
        if not options.read:
            run(name)
        tried, alive = find_alive(name)
        failed |= not tried
        for module, total in tried.items():
            own = alive.get(module, [])
            words = {mutant for mutant, old, new in own if are_words(old, new)}
            equal = {mutant for mutant, old, new in own if (module, old, new) in same or is_strictness(old, new)}
            left = [entry for entry in own if entry[0] not in words | equal]
            counted = total - len(words | equal)
            share = 100 * (counted - len(left)) / max(counted, 1)
            failed |= share < WANTED
            told = f"{len(words)} of words and {len(equal)} that change nothing left out"
            print(f"{module}: {counted - len(left)} of {counted} killed, {share:.1f} % ({told})")
            for mutant, old, new in left:
                print(f"  {mutant.removeprefix(module + '.')}\n    - {old}\n    + {new}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
