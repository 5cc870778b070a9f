"""The names of `dtme` are those a user is meant to find, and each is what it says."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import dtme


def test_dir_shows_the_public_names_and_nothing_else():
    assert dir(dtme) == sorted([*dtme.__all__, "__version__"])
    assert dtme.__all__ == sorted(dtme.__all__)


def test_no_module_takes_the_place_of_a_name():
    for module in pkgutil.walk_packages(dtme.__path__, "dtme."):
        if not module.name.startswith(("dtme.cli.", "dtme.integrations.", "dtme.viz.")):  # these need extras
            importlib.import_module(module.name)
    for name in dtme.__all__:
        assert not isinstance(getattr(dtme, name), ModuleType), name
        assert (getattr(dtme, name).__doc__ or "").strip(), name
