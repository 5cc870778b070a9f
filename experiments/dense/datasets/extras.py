"""Packages that only some readers need, imported when they are."""

from __future__ import annotations

import importlib
from types import ModuleType


def imported(module: str, purpose: str) -> ModuleType:
    """A module of the extra `dense`.

    Args:
        module: Its full name.
        purpose: What needs it, as the error says.

    Raises:
        ImportError: Its package is not installed.

    Example:
        >>> imported("json", "This example").loads("[1]")
        [1]
        >>> imported("no_such_package.io", "This example")
        Traceback (most recent call last):
        ImportError: This example needs the package no_such_package: pip install 'dtme[dense]'.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(f"{purpose} needs the package {package}: pip install 'dtme[dense]'.") from error
