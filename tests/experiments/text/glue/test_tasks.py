"""The nine tasks of GLUE: folders, official counts, partial splits, the hub, token ids."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_text import write_glue

from experiments.text import load, read_folder
from experiments.text.data.files import Sentences, read_file
from experiments.text.data.tasks import TextTask, classes
from experiments.text.glue import TASKS, folders_in, glue_task, read_glue, read_hub
from experiments.text.glue import hub as glue_hub
from experiments.text.trunk import MINILM, load_trunk

REAL = Path(__file__).parents[5] / "shared" / "data" / "glue"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real files are not there: {REAL}")


pytestmark = pytest.mark.usefixtures("cache")


@real
@pytest.mark.parametrize("name", ["CoLA", "SST-2", "MRPC", "STS-B", "RTE", "WNLI"])
def test_complete_tasks_have_the_official_rows(name: str):
    task = glue_task(name)
    files = read_glue(REAL, task)
    assert {split: len(file.texts) for split, file in files.items()} == task.rows
    assert all(len(text) == len(task.text) for text in files["dev"].texts)
    if task.labels is None:
        assert 0 <= min(files["dev"].targets) < max(files["dev"].targets) == 5
    else:
        assert set(files["train"].targets) == {0.0, 1.0}


@real
def test_known_rows_of_the_real_files():
    rte = read_glue(REAL, glue_task("RTE"))["dev"]
    assert rte.texts[0][1] == "Christopher Reeve had an accident."
    assert rte.targets[0] == 1.0  # not entailed
    assert read_glue(REAL, glue_task("STS-B"))["dev"].targets[1] == 4.75
    assert read_glue(REAL, glue_task("CoLA"))["train"].texts[0][0].startswith("Our friends won't buy")
    quoted = [one for one, _ in read_glue(REAL, glue_task("MRPC"))["train"].texts if one.startswith('"')]
    assert quoted  # with quoting on, such rows would swallow the next ones


@real
def test_a_partial_split_is_said_to_be_one():
    assert folders_in(REAL)["QNLI"].name == "QNLI_devsplit"
    suite = load([glue_task("QNLI")], partial(read_glue, REAL), MINILM, cut=50)
    assert any(
        remark.startswith("QNLI, dev: 1,144 rows, but the official split has 5,463: partial")
        for remark in suite.remarks
    )
    assert any("50 of 4,319 training sentences are used" in remark for remark in suite.remarks)
    assert len(suite.train["QNLI"]) == 50


def test_partial_copies_lengths_and_cuts_are_told(data: Path, trunk: str):
    suite = load([glue_task("RTE"), glue_task("STS-B")], partial(read_glue, data), trunk, max_length=12, cut=20)
    assert any("RTE, train: 30 rows, but the official split has 2,490" in remark for remark in suite.remarks)
    long = next(remark for remark in suite.remarks if remark.startswith("RTE, train:") and "cut to 12" in remark)
    whole = load([glue_task("RTE")], partial(read_glue, data), trunk, cut=20)
    too_long = int((whole.train["RTE"].lengths > 12).sum())
    assert long == f"RTE, train: {too_long} of 20 sentences were cut to 12 tokens."
    assert 0 < too_long == suite.train["RTE"].truncated
    assert int(suite.train["RTE"].lengths.max()) == 12
    mean, deviation = suite.scales["STS-B"]
    targets = suite.train["STS-B"].targets.double()
    assert mean == pytest.approx(float(targets.mean()))
    assert deviation == pytest.approx(float(targets.std(correction=0)))


def test_empty_sentences_are_told_and_kept(tmp_path: Path, trunk: str):
    data = write_glue(tmp_path / "glue")
    with (data / "CoLA" / "train.tsv").open("a") as file:
        file.write("src\t1\t\t\nsrc\t0\t\t  \n")
    (data / "RTE" / "dev.tsv.gz").unlink()
    (data / "RTE" / "dev.tsv").write_text(
        "index\tsentence1\tsentence2\tlabel\n0\tred\t\tentailment\n1\ta\tb\tentailment\n"
    )
    suite = load([glue_task("CoLA"), glue_task("RTE")], partial(read_glue, data), trunk)
    assert [remark for remark in suite.remarks if "empty" in remark] == [
        "CoLA, train: 2 of 32 sentences are empty.",
        "RTE, dev: 1 of 2 pairs have an empty sentence.",
    ]
    assert len(suite.train["CoLA"]) == 32


def test_either_official_count_is_taken_for_the_whole(trunk: str):
    assert {glue_task("QQP").rows["train"], *glue_task("QQP").other_rows["train"]} == {363846, 363849}
    task = replace(glue_task("QQP"), rows={"train": 4, "dev": 2}, other_rows={"train": (6,)})

    def remarks(rows: int) -> list[str]:
        def read(task: TextTask) -> dict[str, Sentences]:
            return {name: Sentences([("a", "b")] * n, [1.0] * n, name) for name, n in (("train", rows), ("dev", 2))}

        return list(load([task], read, trunk).remarks)

    assert remarks(4) == remarks(6) == []
    assert remarks(5)[0].startswith("QQP, train: 5 rows, but the official split has 4 or 6: partial")


def test_a_hundred_malformed_lines_of_qqp_are_left_out(tmp_path: Path):
    head, good = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n", "0\t1\t2\ta\tb\t1\n"
    path = tmp_path / "train.tsv"
    path.write_text(head + "broken\n" * 100 + good)
    found = read_file(path, glue_task("QQP"))
    assert (len(found.texts), found.left_out) == (1, 100)
    path.write_text(head + "broken\n" * 101 + good)
    with pytest.raises(ValueError, match=r"line 102: 1 columns, but the head has 6"):
        read_file(path, glue_task("QQP"))


def test_cola_with_a_head_is_recognised(tmp_path: Path):
    path = tmp_path / "dev.tsv"
    for head in ("source\tlabel\tlabel_notes\tsentence", "sentence\tlabel"):
        path.write_text(f"{head}\nsrc\t1\t\tfine\n")
        with pytest.raises(ValueError, match=r"dev\.tsv, line 1: .* is a head, and files of 'CoLA' have none. Remove"):
            read_file(path, glue_task("CoLA"))


def test_ids_are_those_of_the_tokenizer_also_from_the_cache(data: Path, trunk: str):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trunk)
    texts = read_glue(data, glue_task("RTE"))["dev"].texts
    expected = tokenizer([a for a, _ in texts], [b for _, b in texts], truncation=True, max_length=16)
    for _ in range(2):
        dev = load([glue_task("RTE")], partial(read_glue, data), trunk, max_length=16).dev["RTE"][0]
        for row in range(len(dev)):
            ids, segments = dev.sentence(row)
            assert ids.tolist() == expected["input_ids"][row]
            assert segments.tolist() == expected["token_type_ids"][row]


def test_a_sentence_is_no_longer_than_the_trunk_takes(data: Path, trunk: str):
    suite = load([glue_task("RTE")], partial(read_glue, data), trunk, max_length=1000)
    assert int(suite.train["RTE"].lengths.max()) <= 64


def test_wrong_folders_and_names(tmp_path: Path, data: Path, trunk: str):
    with pytest.raises(ValueError, match=r"GLUE has no 'Cola'. Choose from: CoLA, SST-2"):
        glue_task("Cola")
    with pytest.raises(FileNotFoundError, match=r"--data .*nowhere is no folder. Give the one that holds CoLA"):
        folders_in(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="a level too high or too low"):
        folders_in(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no folder WNLI; it has CoLA, STS-B, RTE. Leave"):
        read_glue(data, glue_task("WNLI"))
    for name in ("QQP_one", "QQP_two"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="has QQP_one and QQP_two for QQP: rename or remove one"):
        folders_in(tmp_path)
    for tasks in ([], [glue_task("RTE")] * 2):
        with pytest.raises(ValueError, match="at least one task, and each once"):
            load(tasks, partial(read_glue, data), trunk)
    with pytest.raises(ValueError, match="max_length=4"):
        load([glue_task("RTE")], partial(read_glue, data), trunk, max_length=4)


def test_trunks_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    with pytest.raises(ValueError, match=r"cannot be used: it has an encoder and a decoder.*Give the id of an encoder"):
        load_trunk(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"trunk='.*empty' cannot be used.*config\.json, weights and tokenizer"):
        load_trunk(str(tmp_path / "empty"))


def test_own_folders_are_read_by_the_task_alone(tmp_path: Path, trunk: str):
    (tmp_path / "spam").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "spam" / f"{name}.csv").write_text("text,label\nred cat,no\nbad dog,yes\n")
    suite = load([classes("spam", ("no", "yes"))], partial(read_folder, tmp_path), trunk)
    assert suite.train["spam"].targets.tolist() == [0.0, 1.0]
    with pytest.raises(FileNotFoundError, match=r"ham is no folder"):
        load([classes("ham", ("no", "yes"))], partial(read_folder, tmp_path), trunk)


def of_the_hub(name: str, configuration: str) -> dict[str, Any]:
    if name == "withheld":
        return {split: {"sentence1": ["a"], "sentence2": ["b"], "label": [-1.0]} for split in ("train", "validation")}
    assert name == "nyu-mll/glue"
    tables = {
        "stsb": {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [2.5, 5.0]},
        "mnli": {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0]},
        "sst2": {"sentence": ["a", "b"], "label": [1, -1]},
        "mrpc": {"sentence1": [], "sentence2": [], "label": []},
    }
    splits = (
        ["train", "validation_matched", "validation_mismatched"] if configuration == "mnli" else ["train", "validation"]
    )
    return dict.fromkeys(splits, tables[configuration])


def test_the_hub_by_its_own_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=of_the_hub))  # type: ignore[arg-type]
    mnli = read_hub(glue_task("MNLI"))
    assert list(mnli) == ["train", "dev_matched", "dev_mismatched"]
    assert mnli["dev_mismatched"].texts == [("a", "c"), ("b", "d")]
    assert [glue_task("MNLI").labels[int(i)] for i in mnli["train"].targets] == ["contradiction", "entailment"]  # type: ignore[index]
    assert read_hub(glue_task("STS-B"))["dev"].targets == [2.5, 5.0]
    with pytest.raises(ValueError, match=r"nyu-mll/glue, SST-2, train, row 1: label -1 is none of 0 to 1"):
        read_hub(glue_task("SST-2"))
    with pytest.raises(ValueError, match="MRPC, train has no row"):
        read_hub(glue_task("MRPC"))
    monkeypatch.setattr(glue_hub, "REPOSITORY", "withheld")
    with pytest.raises(
        ValueError, match=r"withheld, STS-B, train, row 0: target '-1\.0' is not.*is this the test split"
    ):
        read_hub(glue_task("STS-B"))


def test_without_datasets_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=r"pip install 'dtme\[glue\]'. Or give the folder of its files: --data"):
        read_hub(glue_task("RTE"))


def test_nine_tasks_as_published():
    assert [task.name for task in TASKS] == ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"]
    assert [task.name for task in TASKS if not task.averaged] == ["WNLI"]
    assert torch.tensor([sum(task.rows.values()) for task in TASKS]).min() > 700
