"""How many tokens a trunk takes, family by family: those that count positions from elsewhere, and those without an end."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text import LETTERS, WORDS

from experiments.text import TextRecipe, begin, build, load, train
from experiments.text.glue import glue_task, read_glue
from experiments.text.trunk import load_tokenizer, longest

TABLE = 14
"""Rows of each table of positions."""
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


pytestmark = pytest.mark.usefixtures("cache")


def trunk_of(family: str, folder: Path) -> str:
    """An encoder with random weights, and a tokenizer by letters that names no limit."""
    from transformers import (
        AutoModel,
        BertConfig,
        BertTokenizerFast,
        CamembertConfig,
        MPNetConfig,
        RobertaConfig,
        XLNetConfig,
    )

    kind = {"bert": BertConfig, "roberta": RobertaConfig, "camembert": CamembertConfig, "mpnet": MPNetConfig}
    pieces = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *LETTERS, *(f"##{own}" for own in LETTERS), *WORDS]
    if family == "xlnet":
        config: Any = XLNetConfig(vocab_size=len(pieces), d_model=16, n_layer=2, n_head=2, d_inner=16, pad_token_id=1)
    else:
        config = kind[family](vocab_size=len(pieces), max_position_embeddings=TABLE, pad_token_id=1, **SMALL)
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    inputs = ["input_ids", "attention_mask"]
    BertTokenizerFast(str(folder / "vocab.txt"), model_input_names=inputs).save_pretrained(folder)
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("family", "expected"),
    [("bert", TABLE), ("roberta", TABLE - 2), ("camembert", TABLE - 2), ("mpnet", TABLE - 2), ("xlnet", 100)],
)
def test_sentences_are_cut_to_the_positions_that_tokens_may_have(
    family: str, expected: int, data: Path, tmp_path: Path
):
    trunk = trunk_of(family, tmp_path / "trunk")
    assert longest(trunk, load_tokenizer(trunk), 100) == expected
    assert longest(trunk, load_tokenizer(trunk), 9) == 9
    tasks = (glue_task("CoLA"), glue_task("RTE"))
    whole = load(tasks, partial(read_glue, data), trunk, max_length=100)
    lengths = whole.train["RTE"].lengths
    assert int(lengths.max()) == min(expected, 13)  # ten words and three marks
    run = begin(build(trunk, tasks, 0), whole, TextRecipe(trunk=trunk, batch=8, steps=2))
    train(run)
    assert run.step == 2
    if expected > TABLE:
        return
    model: Any = run.model.trunk
    with torch.no_grad():
        assert model(torch.full((1, expected), 7)).last_hidden_state.shape[1] == expected
        with pytest.raises((IndexError, RuntimeError)):  # one more is really too many
            model(torch.full((1, expected + 1), 7))
