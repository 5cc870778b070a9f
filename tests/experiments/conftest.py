"""What tests of the study share: a tiny trunk, tiny files in the layout of GLUE, and prices told from few turns."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_text import make_trunk, write_glue

from experiments.runs import measure_cost
from experiments.text import rows


@pytest.fixture(scope="session", autouse=True)
def few_turns() -> Iterator[None]:
    """Seven turns steady a price; that there is one, two show."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (measure_cost, rows):
            patch.setattr(module, "TURNS", 2)
        yield


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_trunk(tmp_path_factory.mktemp("trunk"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("glue"))
