"""Files of text tasks: what is read, and what is refused by file, line and remedy."""

from __future__ import annotations

import dataclasses
import gzip
import re
from pathlib import Path

import pytest

from experiments.text.data.files import find_file, read_file
from experiments.text.data.metrics import ACCURACY
from experiments.text.data.tasks import TextTask, classes, number

SPAM = classes("spam", ("no", "yes"))
HEADLESS = dataclasses.replace(SPAM, header=("label", "text"))
STARS = number("stars", text=("title", "body"), target="stars", bounds=(1, 5))


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", ["train.tsv", "train.tsv.gz"])
def test_tabs_take_quotes_and_strange_separators_for_what_they_are(tmp_path: Path, name: str):
    text = '\ufefftext\tlabel\r\nhe said "no\tyes\r\na\u2028b\x85c\td\n'.replace("\td\n", "\tno\n")
    found = read_file(written(tmp_path, name, text), SPAM)
    assert found.texts == [('he said "no',), ("a\u2028b\x85c",)]
    assert found.targets == [1.0, 0.0]


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
def test_commas_take_quotes_for_quotes(tmp_path: Path, name: str):
    text = 'stars,title,body\n4.5,"one, ""two""","a\nb"\n1,x,y\n'
    found = read_file(written(tmp_path, name, text), STARS)
    assert found.texts == [('one, "two"', "a\nb"), ("x", "y")]
    assert found.targets == [4.5, 1.0]


def test_columns_without_a_head_are_named_by_the_task(tmp_path: Path):
    task = dataclasses.replace(SPAM, header=("label", "text"))
    assert read_file(written(tmp_path, "train.tsv", "no\ta\nyes\tb\n"), task).texts == [("a",), ("b",)]


BAD = {
    "a column too few": (
        "t.tsv",
        "text\tlabel\na\tno\nb\n",
        SPAM,
        r"t\.tsv, line 3: 1 columns, but the head has 2.*Mend or remove",
    ),
    "a column too many": ("t.csv", "text,label\na,b,no\n", SPAM, r"t\.csv, line 2: 3 columns.*\['text', 'label'\]"),
    "a column that is not there": (
        "t.tsv",
        "words\tlabel\na\tno\n",
        SPAM,
        r"line 1: no column 'text' in \['words', 'label'\]",
    ),
    "another label": (
        "t.tsv",
        "text\tlabel\na\tno\nb\tmaybe\n",
        SPAM,
        r"t\.tsv, line 3: label 'maybe' is none of \('no', 'yes'\): mend",
    ),
    "no number": ("t.tsv", "title\tbody\tstars\na\tb\tfour\n", STARS, r"line 2: target 'four' is no number: mend"),
    "out of bounds": ("t.tsv", "title\tbody\tstars\na\tb\t6\n", STARS, r"line 2: target '6' is not between 1 and 5"),
    "not finite": ("t.tsv", "title\tbody\tstars\na\tb\tnan\n", STARS, r"target 'nan' is not between"),
    "no row": ("t.tsv", "text\tlabel\n", SPAM, r"t\.tsv has no row.*complete"),
    "nothing at all": ("t.tsv", "", SPAM, r"t\.tsv has no row.*complete"),
    "nothing at all, packed": ("t.tsv.gz", "", SPAM, r"t\.tsv\.gz has no row.*complete"),
    "blank lines": ("t.tsv", "\n\r\n  \n", SPAM, r"t\.tsv has no row.*complete"),
    "blank lines of a quoted file": ("t.csv", "\n  \n", SPAM, r"t\.csv has no row.*complete"),
    "blank lines without a head": ("t.tsv", "\n\n", HEADLESS, r"t\.tsv has no row.*complete"),
    "a head where there should be none": (
        "t.tsv",
        "\nLabel\tText\nno\ta\n",
        HEADLESS,
        r"t\.tsv, line 2: \['Label', 'Text'\] is a head, and files of 'spam' have none\. Remove the line",
    ),
    "a head of other columns": ("t.tsv", "id\ttext\tlabel\n0\ta\tno\n", HEADLESS, r"line 1: .* is a head.*Remove"),
    "withheld labels": (
        "t.tsv",
        "text\tlabel\na\t-1\n",
        SPAM,
        r"line 2: label '-1' is none of \('no', 'yes'\): is this the test split, whose targets are -1 by convention\? Give",
    ),
    "withheld numbers": (
        "t.csv",
        "title,body,stars\na,b,-1.0\n",
        STARS,
        r"'-1\.0' is not between 1 and 5: is this the test",
    ),
    "another encoding": (
        "t.tsv",
        "text\tlabel\na\u2028b\tno\n".encode() + "caf\xe9\tno\n".encode("latin-1"),
        SPAM,
        r"t\.tsv, line 3 is no UTF-8 text \(invalid continuation byte\)\. Save the file as UTF-8",
    ),
    "another encoding, packed": (
        "t.csv.gz",
        b"text,label\n" + b"a,no\n" * 9000 + b"\xff,no\n",
        SPAM,
        r"t\.csv\.gz, line 9002 is no UTF-8",
    ),
    "another encoding, from the start": ("t.tsv", "text\tlabel\n".encode("utf-16"), SPAM, r"line 1 is no UTF-8"),
    "an open quote": ("t.csv", 'text,label\n"a,no\n', SPAM, r"t\.csv, line 2: .*quote left open"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path: Path, name: str):
    file, text, task, says = BAD[name]
    with pytest.raises(ValueError, match=says):
        read_file(written(tmp_path, file, text), task)


def test_an_empty_file_that_is_packed_by_name_alone(tmp_path: Path):
    (tmp_path / "t.tsv.gz").touch()
    with pytest.raises(ValueError, match=r"t\.tsv\.gz has no row"):
        read_file(tmp_path / "t.tsv.gz", SPAM)


def test_a_sentence_that_is_called_as_its_column_is_no_head(tmp_path: Path):
    found = read_file(written(tmp_path, "t.tsv", "no\ttext\nyes\tlabel\n"), HEADLESS)
    assert found.texts == [("text",), ("label",)]


def test_minus_one_is_a_target_where_the_task_says_so(tmp_path: Path):
    path = written(tmp_path, "t.tsv", "text\tlabel\na\t-1\n")
    assert read_file(path, classes("mood", ("-1", "1"))).targets == [0.0]
    assert read_file(path, number("mood")).targets == [-1.0]


def test_empty_sentences_are_read_and_counted(tmp_path: Path):
    path = written(tmp_path, "t.csv", 'title,body,stars\n"",b,1\na, \t,2\na,b,3\n')
    found = read_file(path, STARS)
    assert len(found.texts) == 3
    assert found.empty == 2


def test_a_line_of_a_quoted_file_is_counted_as_an_editor_counts_it(tmp_path: Path):
    path = written(tmp_path, "t.csv", 'text,label\n"a\nb",no\nc,maybe\n')
    with pytest.raises(ValueError, match=r"line 4: label 'maybe'"):
        read_file(path, SPAM)


def test_files_that_are_cut_short_or_no_gzip_at_all(tmp_path: Path):
    whole = gzip.compress(b"text\tlabel\n" + b"some words\tno\n" * 1000)
    for content in (whole[: len(whole) // 2], b"plain"):
        path = tmp_path / "train.tsv.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train\.tsv\.gz is damaged or cut short.*Fetch it again"):
            read_file(path, SPAM)


def test_so_many_malformed_lines_are_left_out_and_counted(tmp_path: Path):
    path = written(tmp_path, "t.tsv", "text\tlabel\na\nb\tno\nc\n")
    assert read_file(path, dataclasses.replace(SPAM, malformed=2)).left_out == 2
    with pytest.raises(ValueError, match="line 4: 1 columns"):
        read_file(path, dataclasses.replace(SPAM, malformed=1))


def test_folders_and_files_that_are_missing_or_double(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder: a task's data is a folder with train\.tsv"):
        find_file(tmp_path / "nowhere", "train")
    written(tmp_path, "training.tsv", "x")
    with pytest.raises(FileNotFoundError, match=r"has no train with one of the suffixes .*there is training\.tsv"):
        find_file(tmp_path, "train")
    for name in ("train.tsv", "train.csv.gz"):
        written(tmp_path, name, "x")
    with pytest.raises(ValueError, match=r"train\.tsv and train\.csv\.gz, and which is meant"):
        find_file(tmp_path, "train")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: classes("a.b", ("no", "yes")), "neither a dot nor a slash"),
        (lambda: classes("a", ("no",)), r"labels=\('no',\) of task 'a': name at least two"),
        (lambda: classes("a", ("no", "no")), "each once"),
        (lambda: number("a", text=("x", "y", "z")), "one or two columns"),
        (lambda: TextTask("a", "text", "label", None, (ACCURACY,)), re.escape("text='text' of task 'a'")),  # type: ignore[arg-type]
        (lambda: TextTask("a", ("text",), "label", None, ()), "at least one measure"),
    ],
)
def test_tasks_that_cannot_be(make, says: str):
    with pytest.raises(ValueError, match=says):
        make()
