"""A tiny encoder with a tokenizer by letters, and tiny files in the layout of GLUE: whole runs in seconds."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ("red", "blue", "fast", "slow", "cat", "dog", "sings", "runs", "good", "bad")


def make_trunk(folder: Path, *, depth: int = 4, width: int = 16, dropout: float = 0.1) -> str:
    """A BERT with random weights, saved as a user would have it."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{own}" for own in LETTERS), *WORDS]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return str(folder)


def write_glue(data: Path, rows: int = 30) -> Path:
    """CoLA (no head), STS-B (a number) and RTE (pairs, gzip): a training and a development file each, learnable."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    def cola(_: int) -> str:
        text = words(draw.randint(2, 6))
        return f"src\t{int('cat' in text)}\t\t{text}"

    def stsb(row: int) -> str:
        one, two = words(3), words(3)
        return f"{row}\tg\tf\t2012\t1\tn\tn\t{one}\t{two}\t{5 * len(set(one.split()) & set(two.split())) / 3:.3f}"

    def rte(row: int) -> str:
        one, two = words(8), words(2)
        return f"{row}\t{one}\t{two}\t{'entailment' if two.split()[0] in one else 'not_entailment'}"

    heads = {
        "CoLA": ("", cola, ".tsv"),
        "STS-B": (
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n",
            stsb,
            ".tsv",
        ),
        "RTE": ("index\tsentence1\tsentence2\tlabel\n", rte, ".tsv.gz"),
    }
    for task, (head, make, suffix) in heads.items():
        (data / task).mkdir(parents=True)
        for name, count in (("train", rows), ("dev", rows // 2)):
            text = head + "".join(make(row) + "\n" for row in range(count))
            packed = gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode()
            (data / task / f"{name}{suffix}").write_bytes(packed)
    return data
