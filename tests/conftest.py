"""Shapes are checked while the tests run, numbers are drawn from fixed seeds, and one core does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from crew import Crew
from hypothesis import settings
from jaxtyping import install_import_hook

pytest_plugins = ("zoo_table", "drawing")
collect_ignore_glob = [
    "*conftest.py"
]  # they are looked through for examples, too, and there is one of the name in each folder
PURE = ("token_space", "conflict", "rates", "reservoir", "stopping")
"""Modulation is left out: it is compiled and exported, and a check of its shapes cannot be traced."""
METRICS = ("f_measure", "gain")
EDGES = ("boundaries", "matching", "suppression", "thinning")
"""Those whose arguments are tensors; where an option is refused in words, the words are tested and not its type."""

BASELINES = ("balancing", "fair_weights", "final_affine", "jacobian", "recon")

install_import_hook(
    [
        *(f"dtme.measure.{name}" for name in PURE),
        *(f"dtme.metrics.{name}" for name in METRICS),
        *(f"experiments.baselines.{name}" for name in BASELINES),
        *(f"dtme.metrics.edges.{name}" for name in EDGES),
    ],
    "beartype.beartype",
).__enter__()
torch.set_num_threads(1)  # tensors this small wait for a second thread far longer than they compute
settings.register_profile("dtme", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("dtme")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Graphs that are compiled whole need a torch that compiles hooks; what is right without them is asked of every version."""
    from dtme._tracing import COMPILES_HOOKS  # behind the hook above, which wants to come before the library

    for item in () if COMPILES_HOOKS else items:
        whole = "compiled" in item.name or "one_graph" in item.name or "test_exported[" in item.name
        if whole and "whatever_the_version" not in item.name:
            item.add_marker(pytest.mark.skip(reason="torch compiles inserts into one graph since 2.14"))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for what is made once, of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTME_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def crew() -> Iterator[Callable[[int], Crew]]:
    """So many processes in one group, the same ones throughout the session."""
    crews: dict[int, Crew] = {}
    yield lambda size: crews.setdefault(size, Crew(size))
    for one in crews.values():
        one.stop()
