"""A checkpoint goes to a hub and comes back, over HTTP; what can go wrong on the way says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import PRIVATE_OF_OTHERS, TOKEN, Hub, commit_hash, hub_running
from huggingface_hub import file_download
from models import tiny_vit

import dtme
from dtme.attach.apply import is_applied

TASKS = ("depth", "semseg", "scene")
PLAN = dtme.Plan(TASKS, {"blocks.1": TASKS}, {"blocks.2": ("depth", "scene")}, {"blocks.3": ("semseg",)}, rank=2)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_running() as running:
        reach(running.url, tmp_path, monkeypatch)
        yield running


def reach(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment variables HF_ENDPOINT and HF_HOME would have said when the client was imported."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    for module in (constants, file_download):  # which had a copy before version 1
        monkeypatch.setattr(
            module, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}", raising=False
        )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def learnt() -> torch.nn.Module:
    model = dtme.apply(tiny_vit(TASKS), PLAN)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.uniform_(0.5, 1.5)
    return model.eval()


def test_a_model_is_pushed_and_loaded_by_its_name(hub: Hub, tmp_path: Path):
    model = learnt()
    dtme.save_pretrained(model, tmp_path / "run", push_to_hub="lab/rooms", private=True, token=TOKEN)
    assert hub.commits == [["README.md", "config.json", "model.safetensors"]]
    assert hub.private["lab/rooms"] in (True, "private")
    fresh = dtme.load_pretrained(tiny_vit(TASKS).eval(), "lab/rooms")
    for task, output in fresh(IMAGES).items():
        assert torch.equal(output, model(IMAGES)[task])


def test_the_card_shows_the_plan_and_how_to_load_it(hub: Hub, tmp_path: Path):
    dtme.save_pretrained(learnt(), tmp_path, tasks=["depth", "scene"], push_to_hub="lab/rooms", token=TOKEN)
    card = hub.repositories["lab/rooms"][-1]["README.md"].decode()
    assert huggingface_hub.ModelCard(card).data.library_name == "dtme"
    assert "for the tasks depth, scene, inserted into TinyViT" in card
    assert "| `blocks.1` | depth, scene | - | - |" in card
    assert 'dtme.load_pretrained(model, "lab/rooms")' in card
    (tmp_path / "README.md").write_text(card + "\nMine.\n")
    dtme.save_pretrained(learnt(), tmp_path, push_to_hub="lab/rooms", token=TOKEN)
    assert hub.repositories["lab/rooms"][-1]["README.md"].decode().endswith("\nMine.\n")


def test_an_earlier_revision_comes_back_and_the_base_travels_along(hub: Hub, tmp_path: Path):
    model = learnt()
    first = model(IMAGES)
    dtme.save_pretrained(model, tmp_path, base=True, push_to_hub="lab/rooms", token=TOKEN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    dtme.save_pretrained(model, tmp_path, base=True, push_to_hub="lab/rooms", token=TOKEN)
    for revision, wanted in ((commit_hash("lab/rooms", 1), first), (None, model(IMAGES))):
        fresh = dtme.load_pretrained(tiny_vit(TASKS, seed=5).eval(), "lab/rooms", revision=revision)
        for task, output in fresh(IMAGES).items():
            assert torch.equal(output, wanted[task])


def test_what_was_fetched_before_is_there_without_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = learnt()
    dtme.save_pretrained(model, tmp_path / "run", push_to_hub="lab/rooms", token=TOKEN)
    dtme.load_pretrained(tiny_vit(TASKS), "lab/rooms")
    reach(unreachable(), tmp_path, monkeypatch)
    fresh = dtme.load_pretrained(tiny_vit(TASKS).eval(), "lab/rooms")
    assert torch.equal(fresh(IMAGES)["depth"], model(IMAGES)["depth"])


@pytest.mark.parametrize(
    ("source", "revision", "says"),
    [
        ("lab/nothing", None, r"knows no repository 'lab/nothing', or it is private\. .*token="),
        (PRIVATE_OF_OTHERS, None, r"knows no repository 'others/secret', or it is private\. .*token="),
        ("lab/rooms", "v9", r"repository 'lab/rooms' has no revision 'v9'\. Give a branch, a tag or a commit"),
        ("lab/empty", None, r"holds no config\.json: is it a folder that save_pretrained wrote\?"),
        ("lab/b--d", None, r"'lab/b--d' is no name of a repository"),
    ],
)
def test_what_is_not_on_the_hub_is_named(hub: Hub, tmp_path: Path, source: str, revision: str | None, says: str):
    dtme.save_pretrained(learnt(), tmp_path, push_to_hub="lab/rooms", token=TOKEN)
    hub.repositories["lab/empty"] = [{"weights.bin": b"?"}]
    model = tiny_vit(TASKS)
    with pytest.raises(ValueError, match=says):
        dtme.load_pretrained(model, source, revision=revision)
    assert not is_applied(model)


@pytest.mark.parametrize(
    ("repository", "token", "says"),
    [
        ("lab/rooms", "wrong", r"push_to_hub='lab/rooms': .*401.*log in"),
        ("lab/rooms", None, r"push_to_hub='lab/rooms': .*401.*log in"),
        (PRIVATE_OF_OTHERS, TOKEN, r"push_to_hub='others/secret': .*403"),
        ("a/b/c", TOKEN, r"push_to_hub='a/b/c': .*Give 'owner/name'"),
    ],
)
def test_a_push_that_is_refused_leaves_the_folder_written(
    hub: Hub, tmp_path: Path, repository: str, token: str | None, says: str
):
    with pytest.raises(ValueError, match=says):
        dtme.save_pretrained(learnt(), tmp_path, push_to_hub=repository, token=token)
    dtme.load_pretrained(tiny_vit(TASKS), tmp_path)


def test_without_a_network_both_ways_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reach(unreachable(), tmp_path, monkeypatch)
    with pytest.raises(ConnectionError, match=r"'lab/rooms' is no folder here, .*the hub is not reached .*Connect"):
        dtme.load_pretrained(tiny_vit(TASKS), "lab/rooms")
    with pytest.raises(ConnectionError, match=r"push_to_hub='lab/rooms': the hub at .* is not reached .*is written"):
        dtme.save_pretrained(learnt(), tmp_path / "run", push_to_hub="lab/rooms", token=TOKEN)
    dtme.load_pretrained(tiny_vit(TASKS), tmp_path / "run")


def unreachable() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"
