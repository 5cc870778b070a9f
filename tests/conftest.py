"""Shapes are checked while the tests run, numbers are drawn from fixed seeds, and one core does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

from crew import Crew

pytest_plugins = ("zoo_table",)
PURE = ("token_space", "conflict", "rates", "settled")
"""Modulation is left out: it is compiled and exported, and a check of its shapes cannot be traced."""
METRICS = ("depth_rmse", "f_measure", "gain", "matching", "mean_angular_error", "optimal_dataset_f", "thinning")
"""Those whose arguments are tensors; where an option is refused in words, the words are tested and not its type."""

BASELINES = ("balancing", "fairness", "final_affine", "jacobian", "recon")

install_import_hook(
    [
        *(f"dtme.{name}" for name in PURE),
        *(f"dtme.metrics.{name}" for name in METRICS),
        *(f"dtme.baselines.{name}" for name in BASELINES),
    ],
    "beartype.beartype",
).__enter__()
torch.set_num_threads(1)  # tensors this small wait for a second thread far longer than they compute
settings.register_profile("dtme", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("dtme")


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
