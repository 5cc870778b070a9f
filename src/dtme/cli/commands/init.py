"""`dtme init`: a file to begin from."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from dtme.cli.answer import Answer, UsageError
from dtme.cli.paths import check_output

_NEEDS = {"timm": "timm", "hf": "transformers", "torch": "torch"}


def init(file: Positional[Path], like: Literal["timm", "hf", "torch"] = "timm", force: bool = False) -> Answer:
    """Write a commented file for your own model, which runs as it is: made-up data, no network, seconds on a CPU.

    Args:
        file: What to write, mine.py say.
        like: What its trunk is made of.
        force: Write over a file that is there.
    """
    check_output(file, ".py")
    if not file.stem.isidentifier():
        raise UsageError(f"{file}: give a name that Python can import, mine.py say.")
    if file.exists() and not force:
        raise UsageError(f"{file} is there already, and may hold your work: give another name, or --force.")
    text = (files("dtme.cli.templates") / f"like_{like}.py").read_text(encoding="utf-8").replace("mine.py", file.name)
    beside = file.with_name(f".{file.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)  # whole or not at all
    needs = _NEEDS[like]
    missing = "" if find_spec(needs) else f"\nIt needs {needs}, which is not installed: pip install {needs}"
    told = f"{file} is written, and runs as it is. Put your model, losses and batches in.{missing}"
    return Answer({"file": str(file), "like": like}, f"{told}\nNext: dtme doctor {file}")
