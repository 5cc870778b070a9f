"""What an earlier version saved is loaded by this one, and gives the outputs it gave then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden.make import HERE, OUTPUTS, base, inputs
from safetensors.torch import load_file

import dtme
from dtme.checkpoint.files import VERSIONS, undigested

FOLDERS = sorted(HERE.glob("v*"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_checkpoint_of_every_version_gives_its_outputs(folder: Path):
    model = dtme.load_pretrained(base(), folder)
    expected = load_file(folder / OUTPUTS)
    plain = base()(inputs())
    for task, output in model(inputs()).items():
        torch.testing.assert_close(output, expected[task], rtol=0, atol=1e-5)
        assert (output - plain[task]).abs().max() > 0.1
    assert sum(parameter.numel() for _, parameter in dtme.added_parameters(model)) == 288
    assert all(bool(parameter.any()) for _, parameter in dtme.added_parameters(model))


def test_there_is_one_for_every_version_that_is_read():
    assert [folder.name for folder in FOLDERS] == [f"v{version}" for version in VERSIONS]


def test_what_is_saved_again_is_the_same_to_the_bit(tmp_path: Path):
    latest = HERE / f"v{VERSIONS[-1]}"
    dtme.save_pretrained(dtme.load_pretrained(base(), latest), tmp_path)
    again, golden = (load_file(folder / "model.safetensors") for folder in (tmp_path, latest))
    assert again.keys() == golden.keys()
    assert all(torch.equal(tensor, golden[name]) for name, tensor in again.items())
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, latest))
    assert undigested(config) == before


def test_the_files_stay_small():
    assert sum(path.stat().st_size for folder in FOLDERS for path in folder.iterdir()) < 20_000 * len(FOLDERS)
