"""Small files of every kind that is read, and who reads them: all that a stranger may hand over."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import nn

import dtme
from dtme.attach.apply import remove
from dtme.checkpoint import files as checkpoint_files
from dtme.plan.cost import BlockFlops, ModelFlops
from experiments.dense.datasets.headers import read_header
from experiments.dense.datasets.lists import read_ids
from experiments.dense.datasets.pictures import read_gray, read_rgb
from experiments.dense.nuclei import archive
from experiments.dense.taskonomy.splits import read_buildings
from experiments.figures.samples import Samples
from experiments.runner.jsonl import FORMAT, read_lines
from experiments.runner.resume import read_state, write_state
from experiments.tables.doc_tables import table_of
from experiments.text.data.files import read_file
from experiments.text.data.tasks import classes

TASKS = ("depth", "semseg")
PLAN = dtme.Plan(
    TASKS,
    {"trunk.layers.0": TASKS},
    {"trunk.layers.1": TASKS},
    {"trunk.layers.1": TASKS},
    rank=2,
    adapt_layers="linear[12]",
)
SPAM = classes("spam", ("no", "yes"))


@dataclass(frozen=True)
class Specimen:
    """A kind of file.

    Attributes:
        name: Of the file.
        write: Writes a whole one into a folder, and what it needs beside it.
        read: Reads it from the folder.
        digested: Whether a flipped bit is told by a digest.
        beside: Files whose names an error may give instead, since they do not fit this one any more.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    digested: bool = False
    beside: tuple[str, ...] = field(default=())


def model() -> nn.Module:
    """A model of two blocks and two heads."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 1, 4, batch_first=True)
    trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.ModuleDict(
        {"trunk": trunk, "heads": nn.ModuleDict({"depth": nn.Linear(4, 1), "semseg": nn.Linear(4, 2)})}
    )


def filled(value: float) -> nn.Module:
    """The model with inserts, every number of which is the same."""
    found = dtme.apply(model(), PLAN)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(found):
            parameter.fill_(value)
    return found


BARE = model()


def load(folder: Path) -> set[float]:
    """Load a checkpoint; the numbers that its parameters are, one where it is of one save.

    Raises:
        ValueError: It cannot be loaded.
    """
    try:
        dtme.load_pretrained(BARE, folder)
        return {float(value) for _, p in dtme.added_parameters(BARE) for value in p.detach().flatten()}
    finally:
        remove(BARE)


def _report(folder: Path) -> None:
    rate = torch.tensor([0.25, 0.5], dtype=torch.float64).view(2, 1, 1) * (1 - torch.eye(2, dtype=torch.float64))
    blocks = ("x.0", "x.1")
    flops = ModelFlops(10, {name: BlockFlops(5, task_tokens=(1, 2), refusals={"adapt": "no"}) for name in blocks})
    pairing = (("", "shared"), ("shared", ""))
    dtme.ConflictReport(
        TASKS, blocks, (8, 8), (3, 3), rate, rate, rate, rate, 9, pairing, (0.0, 0.5), 100.0, 0.95,
        gradient_size=torch.ones(2, 2), flops=flops, range_chance=rate, notes=("one",), undecided=("x.1",),
    ).save(folder / "report.json")  # fmt: skip


def _lines(folder: Path) -> None:
    task = {"name": "depth", "metric": "rmse", "higher_is_better": False}
    costs = dict.fromkeys(
        ("delta_m", "step_cost", "inference_cost", "wall_clock_ratio", "flops_ratio", "parameters_added_percent"), 1.0
    )
    row = {"format": FORMAT, "version": 1, "suite": "scenes", "tasks": [task], "seed": 0, "metrics": {"depth": 0.5}}
    lines = [
        json.dumps({**row, **costs, "method": method, "parameters_added": 3, "streams_part_at": None})
        for method in ("ST", "MT")
    ]
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")


def _samples(folder: Path) -> None:
    map_ = torch.rand(1, 4, 4)
    Samples(
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {"depth": map_}, {"MT": {"depth": map_}}, {"depth": "depth"}
    ).save(folder / "samples.safetensors")


def _archive(folder: Path) -> None:
    pictures = {"images/a.jpg": ("JPEG", "RGB"), "instances/a.png": ("PNG", "L")}
    files = {"splits.json": b'{"train": ["a"], "test": ["b"]}', **{n: _image(*kind) for n, kind in pictures.items()}}
    with tarfile.open(folder / "data.tar", "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _image(kind: str, mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (6, 6), 3 if mode == "L" else (1, 2, 3)).save(file, kind)
    return file.getvalue()


def _read_archive(folder: Path) -> None:
    found = archive.read(folder / "data.tar")
    found.splits()
    found.picture("a")


def _carried(folder: Path) -> None:
    state = dtme.carry_plan(filled(1.0)).state_dict()
    (folder / "carried").write_bytes(bytes(state["_dtme_plan" if "_dtme_plan" in state else "dtme_plan"].tolist()))


def _content(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


SPECIMENS = (
    Specimen("plan.json", lambda f: PLAN.save(f / "plan.json"), lambda f: dtme.Plan.load(f / "plan.json")),
    Specimen("report.json", _report, lambda f: str(dtme.ConflictReport.load(f / "report.json")), digested=True),
    Specimen(
        "config.json", lambda f: dtme.save_pretrained(filled(1.0), f, base=True), load, True, ("model.safetensors",)
    ),
    Specimen("model.safetensors", lambda f: dtme.save_pretrained(filled(1.0), f), load, True, ("config.json",)),
    Specimen(
        "base.safetensors",
        lambda f: dtme.save_pretrained(filled(1.0), f, base=True),
        checkpoint_files.read,
        True,
        ("config.json",),
    ),
    Specimen(
        "dtme.json", lambda f: dtme.save_plan(filled(1.0), f), lambda f: remove(dtme.resume(BARE, f)), digested=True
    ),
    Specimen(
        "state.pt",
        lambda f: write_state(f / "state.pt", {"settings": "{}", "run": {"x": torch.ones(3)}}),
        lambda f: read_state(f / "state.pt"),
        digested=True,
    ),
    Specimen("results.jsonl", _lines, lambda f: (read_lines(f / "results.jsonl"), table_of(f / "results.jsonl"))),
    Specimen("samples.safetensors", _samples, lambda f: Samples.load(f / "samples.safetensors")),
    Specimen("data.tar", _archive, _read_archive),
    Specimen("t.tsv", _content("t.tsv", b"text\tlabel\na b\tno\nc\tyes\n"), lambda f: read_file(f / "t.tsv", SPAM)),
    Specimen("t.csv", _content("t.csv", b'text,label\n"a, ""b""",no\nc,yes\n'), lambda f: read_file(f / "t.csv", SPAM)),
    Specimen(
        "t.tsv.gz",
        _content("t.tsv.gz", gzip.compress(b"text\tlabel\na b\tno\nc\tyes\n", mtime=0)),
        lambda f: read_file(f / "t.tsv.gz", SPAM),
    ),
    Specimen("val.txt", _content("val.txt", b"0001\n0002\n"), lambda f: read_ids(f / "val.txt")),
    Specimen(
        "tiny.csv",
        _content("tiny.csv", b"id,train,val,test\rhanson,1,0,0\rb,0,1,0\r"),
        lambda f: read_buildings(f / "tiny.csv"),
    ),
    Specimen(
        "a.png", _content("a.png", _image("PNG", "L")), lambda f: (read_header(f / "a.png"), read_gray(f / "a.png"))
    ),
    Specimen(
        "a.jpg",
        _content("a.jpg", _image("JPEG", "RGB")),
        lambda f: (read_header(f / "a.jpg"), read_rgb(f / "a.jpg", "JPEG")),
    ),
)
"""One for each reader."""
