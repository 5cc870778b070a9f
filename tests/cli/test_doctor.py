"""What the doctor finds by trying: what works, and why the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm

from dtme.cli import main
from dtme.cli.commands import subjects, trials

Answered = Callable[..., Any]
BLOCKS = [f"trunk.layers.{place}" for place in range(3)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler, whose loading alone takes longer than all other tests."""
    for use in ("_compile", "_export"):
        monkeypatch.setattr(trials, use, lambda subject, model: subject.forward(model))


def test_a_plain_encoder_takes_everything(mine: Path, answered: Answered):
    found = answered("doctor", "mine.py")
    assert found["blocks"] == BLOCKS
    assert found["heads"] is True
    assert all(own["works"] and not own["refused"] for own in found["inserts"].values())
    assert {name: own["works"] for name, own in found["uses"].items()} == dict.fromkeys(
        ("one task", "mixed rows", "compile", "export"), True
    )


@pytest.mark.usefixtures("quick")
def test_what_a_block_refuses_says_why_block_by_block(
    answered: Answered, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: small(create(name, **options, **sizes)))
    found = answered("doctor", "timm:swin_tiny_patch4_window7_224")
    refused = found["inserts"]["task tokens"]["refused"]
    assert list(refused) == found["blocks"] == ["trunk.layers.0.blocks.0", "trunk.layers.1.blocks.0"]
    assert all("relative_position_index" in why for why in refused.values())
    assert found["inserts"]["modulators"] == {"works": True, "refused": {}}
    assert main(["doctor", "timm:swin_tiny_patch4_window7_224"]) == 0
    said = capsys.readouterr().out
    assert "task tokens       in 0 of 2 blocks" in said
    assert said.count("relative_position_index") == 1  # a reason stands once, and its blocks below it
    assert "\n      trunk.layers.1.blocks.0\n" in said


def small(trunk: Any) -> Any:
    trunk.default_cfg = {**trunk.default_cfg, "input_size": (3, 32, 32)}
    return trunk


@pytest.mark.usefixtures("quick")
def test_heads_that_are_not_found_are_a_no_until_the_file_names_them(mine: Path, answered: Answered):
    text = mine.read_text().replace('nn.ModuleDict({"depth": nn.Linear(8, 1), "semseg": nn.Linear(8, 3)})', "None")
    text = text.replace("self.heads = None", "self.one, self.other = nn.Linear(8, 1), nn.Linear(8, 3)")
    text = text.replace(
        "{task: head(tokens) for task, head in self.heads.items()}",
        '{"depth": self.one(tokens), "semseg": self.other(tokens)}',
    )
    mine.write_text(text)
    assert "branches" in answered("doctor", "mine.py", code=1)["error"]
    mine.write_text(f'{text}\ndef branches(model):\n    return {{"depth": "one", "semseg": model.other}}\n')
    assert answered("doctor", "mine.py")["uses"]["one task"]["works"] is True


@pytest.mark.usefixtures("quick")
def test_a_model_without_blocks_is_a_no(mine: Path, answered: Answered):
    mine.write_text(mine.read_text().replace("self.trunk = nn.Trans", "self.trunk = nn.Linear(8, 8); _ = nn.Trans"))
    assert "blocks" in answered("doctor", "mine.py", code=1)["error"]


@pytest.mark.usefixtures("quick")
def test_a_model_that_is_not_called_as_a_whole_has_its_inserts_tried(mine: Path, answered: Answered):
    text = mine.read_text().replace(
        "model(batch).items()", "((t, h(model.trunk(batch))) for t, h in model.heads.items())"
    )
    mine.write_text(text)
    found = answered("doctor", "mine.py")
    assert found["inserts"]["modulators"]["works"] is True
    assert {own["works"] for own in found["uses"].values()} == {None}
    assert "model(...)" in found["uses"]["export"]["why"]


def test_wrong_names_are_usage(answered: Answered):
    assert "vit_tiny_patch16_224" in answered("doctor", "timm:vit_tiny_patch16", code=2)["error"]
    assert "give a kind of model" in answered("doctor", "hf:./nowhere", code=2)["error"]
    assert "billion parameters" in answered("doctor", "hf:llama", code=2)["error"]


@pytest.mark.usefixtures("quick")
def test_a_model_of_transformers_by_its_kind(answered: Answered, monkeypatch: pytest.MonkeyPatch):
    import transformers

    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    monkeypatch.setattr(transformers.AutoConfig, "for_model", lambda name: config)
    found = answered("doctor", "hf:bert")
    assert found["blocks"] == ["trunk.encoder.layer.0", "trunk.encoder.layer.1"]
    assert found["inserts"]["task tokens"]["works"] is True
    assert subjects.FEW == 2
