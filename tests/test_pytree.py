"""What blocks return is copied with its tensors changed, whatever kind of mapping it is, and never written to."""

from __future__ import annotations

from collections import UserDict, defaultdict
from typing import Any

import pytest
import torch

from dtme._pytree import map_tensors


class Attributes(dict):
    """Looks every attribute up among its keys, as some libraries' outputs do."""

    def __init__(self, **entries: Any):
        super().__init__(**entries)
        self.__dict__["note"] = "kept"

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Slotted(dict):
    __slots__ = ("note",)

    def __init__(self, **entries: Any):
        super().__init__(**entries)
        self.note = "kept"


class Defaults(defaultdict):
    def __init__(self, factory: Any = list, entries: Any = (), **more: Any):
        super().__init__(factory, entries, **more)
        self.note = "kept"


class Wrapped(UserDict):
    def __init__(self, entries: Any = None, **more: Any):
        super().__init__(entries, **more)
        self.note = "kept"


@pytest.mark.parametrize("kind", [Attributes, Slotted, Defaults, Wrapped])
def test_mappings_of_any_kind_stay_what_they_are(kind: type):
    given = kind(tokens=torch.ones(2), maps=(torch.ones(1), None), name="a block's")
    twin = map_tensors(given, lambda tensor: tensor + 1)
    assert type(twin) is kind
    assert twin["tokens"].tolist() == [2.0, 2.0]
    assert (twin["maps"][0].tolist(), twin["maps"][1]) == ([2.0], None)
    assert (twin["name"], twin.note) == ("a block's", "kept")
    assert list(twin) == list(given)
    assert given["tokens"].tolist() == [1.0, 1.0]
    if kind is Defaults:
        assert twin["missing"] == []
