"""`data check`: what it says of sound copies, and that it names everything a run would fail of."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from nyud13_copies import mtan_copy, parquet_copy
from nyud_copies import NAMES, invpt_copy, labeled_mat, lists, maps, mti_copy, npy, png
from pascal_copies import pascal_copy
from rich.console import Console
from taskonomy_copies import BUILDINGS, path_of, splits_csv, taskonomy_copy

from experiments import cli
from experiments.dense import data_command
from experiments.dense.checking import Findings, show
from experiments.dense.checking.findings import some_of
from experiments.dense.checking.looking import look
from experiments.dense.datasets.errors import DataError
from experiments.dense.nyud import NyudChoices
from experiments.dense.nyud.official import official_split
from experiments.dense.on_disk import SUITES, check_data, load_suite
from experiments.dense.taskonomy import TaskonomyChoices

COPIES = {
    "nyud": invpt_copy,
    "nyud13": lambda root: mtan_copy(root, (18, 24)),
    "pascal_context": pascal_copy,
    "taskonomy": taskonomy_copy,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DTME_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copy(tmp_path) -> Path:
    return invpt_copy(tmp_path / "data")


def said(findings: Findings, level: str) -> str:
    return "\n".join(
        f"{each.about}: {each.said} {some_of(each.names)}" for each in findings.found if each.level == level
    )


def choices_of(suite: str):
    return SUITES[suite].choices(size=(18, 24)) if suite == "nyud13" else None


@pytest.mark.parametrize("suite", COPIES)
@pytest.mark.parametrize("read", ["listing", "headers", "pixels"])
def test_a_sound_copy_is_fit_for_a_run(suite, read, tmp_path):
    root = COPIES[suite](tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    told = []
    findings = check_data(suite, root, choices_of(suite), read=read, told=lambda *now: told.append(now))
    assert not findings.failed, said(findings, "error")
    assert "not comparable" in said(findings, "note")  # it is small
    assert told
    assert all(done <= total for _, done, total in told)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    if read != "listing":
        facts = said(findings, "fact")
        assert all(task in facts for task in SUITES[suite].tasks)
    assert load_suite(suite, root, choices_of(suite)).name == suite


def test_what_maps_hold_is_told(copy):
    findings = check_data("nyud", copy)
    facts = said(findings, "fact")
    assert "image: 4 files, 42 x 56, 4 decoded, from 0 to 255" in facts
    assert "semseg: 4 files, 42 x 56, 4 decoded, classes 0 to 39" in facts
    depth = np.concatenate([maps(name)["depth"].ravel() for name in NAMES])
    assert f"depth: 4 files, 42 x 56, 4 decoded, from {depth[depth > 0].min():.4g} to {depth.max():.4g}" in facts
    assert f"{100 * (depth == 0).mean():.2f} % unknown" in facts
    normals = np.stack([maps(name)["normals8"] for name in NAMES]) * (2 / 255) - 1
    share = 100 * (np.linalg.norm(normals, axis=-1) < 0.5).mean()
    assert f"normals: {share:.2f} % of the pixels are no directions" in said(findings, "note")


def test_official_lists_are_recognised(tmp_path):
    split = official_split()
    root = invpt_copy(tmp_path, 4, 6, names=(*split["train"][:2], *split["test"][:2]))
    lists(root, split["train"], split["test"])
    findings = check_data("nyud", root, read="listing")
    assert "train: the official 795" in said(findings, "fact")
    assert "test: the official 654" in said(findings, "fact")
    assert "image: 793 of 795 train images have none" in said(findings, "error")


def spoil_all(copy: Path) -> None:
    (copy / "normals/0001.png").unlink()
    cut = copy / "images/0003.png"
    cut.write_bytes(cut.read_bytes()[:-50])
    png(copy / "segmentation/0002.png", np.full((42, 56), 77, np.uint8))
    png(copy / "edge/0004.png", np.zeros((40, 56), np.uint8))
    npy(copy / "depth/0004.npy", np.full((42, 56), np.nan))


def test_everything_wrong_is_named(copy):
    spoil_all(copy)
    findings = check_data("nyud", copy)
    errors = said(findings, "error")
    for expected in (
        "normals: 1 of 2 test images have none",
        "0001.png",
        "images/0003.png cannot be read",
        "holds the labels [77]",
        "edge/0004.png is 40 x 56, but its picture is 42 x 56",
        "holds 2352 depths that are not finite",
    ):
        assert expected in errors
    assert len(findings.errors) == 5


def test_headers_alone_tell_what_is_cut_short_or_of_another_size(copy):
    spoil_all(copy)
    errors = said(check_data("nyud", copy, read="headers", looked_at=1), "error")
    assert "0003.png cannot be read as a PNG (its end is not there" in errors
    assert "edge/0004.png is 40 x 56" in errors
    assert "finite" not in errors  # that takes pixels


def test_a_run_says_the_same_before_it_starts(copy):
    spoil_all(copy)
    with pytest.raises(DataError, match="not fit for a run of nyud") as raised:
        load_suite("nyud", copy)
    assert "data check nyud" in str(raised.value)
    assert "0003.png" in str(raised.value)
    assert "2352 depths that are not finite" in str(raised.value)
    assert load_suite("nyud", copy, checked=False).name == "nyud"


def test_what_is_left_out_or_skipped_on_request_is_no_error(copy):
    (copy / "normals/0001.png").unlink()
    cut = copy / "depth/0003.npy"
    cut.write_bytes(cut.read_bytes()[:-50])
    chosen = NyudChoices(missing="leave_out", unreadable="skip")
    findings = check_data("nyud", copy, chosen)
    assert not findings.failed
    assert "1 of 2 test images have none: left out" in said(findings, "note")
    assert "They are skipped." in said(findings, "note")
    assert load_suite("nyud", copy, chosen).name == "nyud"


def test_no_label_at_all_for_a_task(copy):
    for path in (copy / "edge").iterdir():
        path.unlink()
    for chosen in (None, NyudChoices(missing="leave_out")):
        assert "none of the 2 train images has one" in said(check_data("nyud", copy, chosen), "error")
    shutil.rmtree(copy / "edge")
    errors = said(check_data("nyud", copy), "error")
    assert "nothing is there of edges. A run needs --tasks semseg depth normals, or a whole copy: NYUDv2" in errors
    assert not check_data("nyud", copy, NyudChoices(tasks=("semseg", "depth", "normals"))).failed


def test_13_classes_where_40_are_meant(tmp_path):
    names = tuple(f"{number:04d}" for number in range(1, 11))
    root = invpt_copy(tmp_path / "nyud", names=names)
    lists(root, names[:5], names[5:])
    assert not check_data("nyud", root).failed
    for name in names:
        png(root / f"segmentation/{name}.png", maps(name)["labels"] % 14)
    assert "no label above 13 in 10 maps: these are 13 classes" in said(check_data("nyud", root), "error")
    with pytest.raises(DataError, match="these are 13 classes where 40 are meant"):
        load_suite("nyud", root)
    assert "its suite is nyud13" in said(check_data("nyud", mtan_copy(tmp_path / "b", (18, 24))), "error")


def test_full_images_where_cropped_ones_are_meant(tmp_path):
    root = invpt_copy(tmp_path, 480, 640, names=("0001", "0003"))
    assert "480 x 640 where 425 x 560 is meant" in said(check_data("nyud", root), "error")


def test_images_that_do_not_fit_are_found_before_training(tmp_path):
    small = NyudChoices(size=(32, 64))
    errors = said(check_data("nyud", invpt_copy(tmp_path / "a"), small, read="headers"), "error")
    assert "42 x 56 do not all fit into 32 x 64" in errors
    root = pascal_copy(tmp_path / "p", (30, 600))
    assert "4 pictures, of 30 x 600, do not fit into 512 x 512" in said(check_data("pascal_context", root), "error")


def test_one_file_of_everything_is_checked_too(tmp_path):
    path = labeled_mat(tmp_path)
    assert "nothing is there of normals, edges" in said(check_data("nyud", path), "error")
    findings = check_data("nyud", path, NyudChoices(tasks=("semseg", "depth")), read="headers")
    assert not findings.failed
    assert "image: 3 files, 48 x 64, 3 decoded" in said(findings, "fact")


def test_parquet_is_checked_too(tmp_path):
    findings = check_data("nyud13", parquet_copy(tmp_path, (18, 24)), SUITES["nyud13"].choices(size=(18, 24)))
    assert not findings.failed
    assert "depth: 5 files, 18 x 24" in said(findings, "fact")


def test_other_layouts_are_told(tmp_path):
    assert "MTI-Net" in said(check_data("nyud", mti_copy(tmp_path)), "fact")


# --- Taskonomy ---


def test_gaps_of_taskonomy_are_counted_by_building(tmp_path):
    root = taskonomy_copy(tmp_path / "t")
    path_of(root, "omnidata", "normal", "hanson", 0, 0).unlink()
    path_of(root, "omnidata", "edge_texture", "wiconisco", 0, 0).unlink()
    cut = path_of(root, "omnidata", "reshading", "merom", 2, 1)
    cut.write_bytes(cut.read_bytes()[:-40])
    png(path_of(root, "omnidata", "depth_zbuffer", "merom", 10, 0), np.zeros((64, 64), np.uint8))
    findings = check_data("taskonomy", root)
    notes, errors = said(findings, "note"), said(findings, "error")
    assert "normal: views of 1 buildings are not there: hanson (1 of 3 views)" in notes
    assert "edge_texture: not there in wiconisco (1 of 3 views), as in everybody's download" in notes
    assert "merom/point_2_view_1_domain_reshading.png cannot be read as a PNG" in errors
    assert "depth_zbuffer: 1 of 1 x 8 bits, but 1 x 16 are meant" in errors


def test_buildings_that_are_not_there_do_not_end_the_check(tmp_path):
    root = taskonomy_copy(tmp_path / "t")
    splits_csv(
        root / "splits_taskonomy/train_val_test_tiny.csv",
        BUILDINGS | {"train": ("hanson", "merom", "onaga", "woodbine")},
    )
    shutil.rmtree(root / "normal/taskonomy/hanson")
    findings = check_data("taskonomy", root)
    assert "no pictures of onaga" in said(findings, "error")
    assert "woodbine not there: the download gives them to nobody" in said(findings, "note")
    assert "reshading: 12 files" in said(findings, "fact")  # the rest was looked at all the same
    only = said(check_data("taskonomy", root, TaskonomyChoices(absent="leave_out")), "error")
    assert "hanson has no normal" in only


def test_known_corrupt_files_are_said_to_be_known(tmp_path):
    root = taskonomy_copy(tmp_path / "t", domains=("rgb", "normal", "depth_euclidean"))
    splits_csv(root / "splits_taskonomy/train_val_test_tiny.csv", BUILDINGS | {"train": ("hanson", "newfields")})
    for domain in ("rgb", "normal", "depth_euclidean"):
        shutil.copytree(root / domain / "taskonomy/merom", root / domain / "taskonomy/newfields")
        source = path_of(root, "omnidata", domain, "newfields", 0, 0)
        shutil.copy(source, path_of(root, "omnidata", domain, "newfields", 1070, 8))
    path_of(root, "omnidata", "rgb", "newfields", 1070, 8).write_bytes(b"cut")
    findings = check_data("taskonomy", root, TaskonomyChoices(tasks=("normal", "depth_euclidean")))
    assert not findings.failed
    assert "newfields/1070/8 is corrupt in everybody's download, and left out" in said(findings, "note")


# --- the command ---


def test_the_command_ends_with_1_where_a_run_would_fail(copy, capsys):
    assert data_command.main(["check", "nyud", str(copy), "--workers", "1"]) == 0
    assert "Fit for a run" in capsys.readouterr().out
    (copy / "images/0001.png").unlink()
    assert data_command.main(["check", "nyud", str(copy), "--read", "listing"]) == 1
    out = capsys.readouterr().out
    assert "A run would fail, of 1 thing." in out
    assert str(copy / "images/0001.png") in out
    assert data_command.main(["check", "nyud", str(copy / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().out


def test_the_command_takes_the_choices_of_the_suite(copy, capsys):
    (copy / "segmentation/0001.png").unlink()
    assert data_command.main(["check", "nyud", str(copy), "--missing", "leave_out"]) == 0
    assert data_command.main(["check", "nyud", str(copy), "--tasks", "depth", "edges"]) == 0
    with pytest.raises(ValueError, match="only data check"):
        data_command.main(["delete", "nyud"])
    with pytest.raises(SystemExit):
        data_command.main(["check", "cityscapes", str(copy)])


def test_the_study_has_the_command(copy, capsys):
    cli.main(["data", "check", "nyud", str(copy), "--workers", "1"])
    assert "Fit for a run" in capsys.readouterr().out
    (copy / "images/0001.png").unlink()
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "check", "nyud", str(copy), "--read", "listing"])
    assert ended.value.code == 1
    with pytest.raises(SystemExit, match="only data check"):
        cli.main(["data", "delete", "nyud"])


def test_many_files_are_named_up_to_a_limit():
    findings = Findings("nyud", Path("data"))
    findings.add("error", "depth", "30 are missing", [f"d{number}" for number in range(30)])
    console = Console(file=io.StringIO(), width=60)
    show(findings, console, names=3)
    assert "d0, d1, d2 and 27 more" in console.file.getvalue()
    assert "[" not in console.file.getvalue()


def test_workers_count_what_one_process_counts(copy, monkeypatch):
    monkeypatch.setattr("experiments.dense.checking.looking._CHUNK", 1)
    suite = load_suite("nyud", copy, checked=False)
    kinds = {task.name: task.kind for task in suite.tasks}
    assert look(suite.reader, NAMES, kinds, "pixels", workers=1) == look(
        suite.reader, NAMES, kinds, "pixels", workers=2
    )
