"""The command that makes all results of the findings: what it runs, what it keeps, and where it stops."""

import json
import sys
from itertools import product, takewhile
from pathlib import Path
from statistics import fmean

import pytest

from experiments.ablations import ablation_of
from experiments.commands.options import REGIMES
from experiments.dense.experiment import TUNED_WEIGHTS
from experiments.runs.by_name import method_of
from experiments.studies import reproduce as findings

FAKE = """#!/bin/sh
shift 2  # -m experiments
echo "$@" >> {log}
[ "$1" = probe ] && exit 3
while [ $# -gt 1 ]; do [ "$1" = --out ] && out=$2; shift; done
mkdir -p $out
for name in results.jsonl tuning.json ablation-loss-weights.jsonl; do echo made > $out/$name; done
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A python that writes down how it was called and fails when it is to probe."""
    log = tmp_path / "log"
    fake = tmp_path / "python"
    fake.write_text(FAKE.format(log=log))
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setattr(findings, "ROOT", tmp_path / "kept")
    return log


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["findings.py", *words])
    findings.main()


RESULTS = {
    place: work.words
    for work in findings.works(Path("runs"), Path("nuclei.tar"))
    for place in work.kept.values()
    if work.words[0] != "tune" and place.endswith("l")
}


@pytest.mark.parametrize("place", RESULTS)
def test_the_commands_make_what_the_committed_files_hold(place: str):
    kind, *words = RESULTS[place]
    lines = [json.loads(line) for line in (Path(__file__).parents[3] / place).read_text(encoding="utf-8").splitlines()]
    seeds = {int(word) for word in _behind(words, "--seeds")}
    methods = _behind(words, "--methods") if kind == "bench" else [m.name for _, m in ablation_of(words[0]).arms]
    assert {line["seed"] for line in lines} == seeds
    assert {(line["method"], line["seed"]) for line in lines} == set(product({"ST", "MT", *methods}, seeds))


def _behind(words: list[str], option: str) -> list[str]:
    """What follows an option, up to the next."""
    return list(takewhile(lambda word: not word.startswith("--"), words[words.index(option) + 1 :]))


def test_what_a_command_leaves_is_kept(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    run(monkeypatch, "--only", "tune", "settled", "--runs", str(tmp_path / "runs"))
    assert [line.split()[:2] for line in log.read_text().splitlines()] == [["tune", "scenes"], ["bench", "scenes"]]
    kept = {str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*.json*")}
    assert kept == {"results/tuning/scenes-rates.json", "results/scenes-settled.jsonl"}
    assert "nuclei are left out: --data is not given" in capsys.readouterr().out


def test_a_command_that_fails_stops_all_and_keeps_nothing(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["--only", "probe", "ablations", "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit, match="stopped at: python -m experiments probe nuclei"):
        run(monkeypatch, *words, "--data", "nuclei.tar")
    assert len(log.read_text().splitlines()) == 1
    assert not (tmp_path / "kept").exists()


def test_the_commands_name_methods_and_ablations_that_there_are():
    for work in findings.works(Path("runs"), Path("nuclei.tar")):
        kind, *words = work.words
        if kind == "ablate":
            assert ablation_of(words[0]).name == words[0]
        methods = words[words.index("--methods") + 1 :] if kind == "bench" else []
        for name in methods[: next((place for place, word in enumerate(methods) if word.startswith("--")), None)]:
            assert method_of(name).name == name
        assert ("--data" in words) == ("nuclei" in words)


@pytest.mark.parametrize("suite", ["nuclei", "scenes"])
def test_tuned_weights_are_the_best_of_those_compared_on_the_validation_split(suite: str):
    """From the committed results: whoever changes the weights has to compare them again."""
    gains: dict[str, list[float]] = {}
    for name in ("one-weight", "weights"):
        path = findings.ROOT / "results" / "tuning" / f"{suite}-{name}.jsonl"
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            assert row["settings"]["held_out"] == "val"
            if row["method"].startswith("MT,"):
                gains.setdefault(row["method"], []).append(row["delta_m"])
    best = method_of(max(gains, key=lambda name: fmean(gains[name])))
    assert best.weights is not None
    assert best.weights != "even"
    assert best.weights[suite] == pytest.approx(TUNED_WEIGHTS[suite])


@pytest.mark.parametrize("suite", ["nuclei", "scenes"])
def test_learning_rates_are_the_best_of_those_compared_to_a_fifth_of_a_point(suite: str):
    """The spread of a seed is as large, so that what is less apart is not told apart by the one that was run."""
    path = findings.ROOT / "results" / "tuning" / f"{suite}-rates.json"
    found = {(line["row_rate"], line["head_rate"]): line["sum"] for line in json.loads(path.read_text())["scores"]}
    recipe = REGIMES["plateau"]
    assert max(found.values()) - found[recipe.row_rate, recipe.head_rate] < 0.2


@pytest.mark.parametrize("suite", ["nuclei", "scenes"])
def test_copies_learn_at_the_rate_that_was_best_on_the_validation_split(suite: str):
    gains: dict[str, list[float]] = {}
    path = findings.ROOT / "results" / "tuning" / f"{suite}-copies-rate.jsonl"
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        assert row["settings"]["held_out"] == "val"
        if row["method"].startswith("own"):
            gains.setdefault(row["method"], []).append(row["delta_m"])
    assert {len(found) for found in gains.values()} == {3}
    assert max(gains, key=lambda name: fmean(gains[name])) == "own last block, rate 3"
