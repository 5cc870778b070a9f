"""Names of 0.1.0 that are gone say so: a pickled model names the modules of its classes, and those have moved."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any, NoReturn

_NAMES = """
adaptation adapting alike analysis apply arguments attention backward base baselines bench block_copy block_flops
blocks branches budget capture checkpoint_files comparison conflict copying cost crossing cuts eager expanding
expansion failing first_backward flops full_precision gradients hub insert joining lanes layout low_rank made_once
measurement modulating modulation moments one_stream outputs padding parallel part_flops parting passed_by
position_tables printed processes products rates recommendation remaking report_file routing sample_axis segments
settled sight token_space trail undisturbed
"""
GONE = frozenset(_NAMES.split())
"""Modules of `dtme` in 0.1.0 whose names nothing bears now."""


def refuse(name: str) -> NoReturn:
    """Says what to do about a name of 0.1.0.

    Raises:
        ModuleNotFoundError: Always.
    """
    raise ModuleNotFoundError(
        f"{name} is of dtme 0.1.0 and has no place here. If a file is being loaded, it was pickled by dtme 0.1.0, and a pickle "
        "holds the names of that version's classes. Load it there once, in an environment with dtme 0.1.0, and save what lasts: "
        "dtme.save_pretrained(model, folder), or model.state_dict() with plan.save(path), or report.save(path). "
        "dtme.load_pretrained(model, folder), dtme.Plan.load(path) and dtme.ConflictReport.load(path) read those here. "
        "If your code imports it, the changelog has the new name beside the old.",
        name=name,
    )


def moved(package: str, *names: str) -> Callable[[str], Any]:
    """A `__getattr__` for a package that was a module in 0.1.0: the classes that pickles look for there are explained."""

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in names:
            refuse(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__


class _Gone:
    """Stands behind all other finders, so that it costs nothing and a module that is there is never hidden."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        parent, _, module = name.partition(".")
        if parent == "dtme" and module in GONE:
            refuse(name)
        return None


def explain_gone_modules() -> None:
    """Has imports of modules of 0.1.0 raise what `refuse` says; a second call changes nothing."""
    if _Gone not in sys.meta_path:
        sys.meta_path.append(_Gone)
