"""What tests of the text benchmark share: a tiny trunk, and tiny files in the layout of GLUE."""

from pathlib import Path

import pytest
from tiny_text import make_trunk, write_glue


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_trunk(tmp_path_factory.mktemp("trunk"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("glue"))
