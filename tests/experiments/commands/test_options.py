"""What a command on a dense suite is told, and the benchmark runs that follow from it."""

from pathlib import Path

import pytest

from experiments import cli
from experiments.commands.options import REGIMES, Options


def test_a_width_is_that_of_the_trunk_and_has_a_folder_of_its_own():
    plain, wide = Options("scenes"), Options("scenes", width=64)
    assert [options.folder() for options in (plain, wide)] == [
        Path("runs/scenes-plateau"),
        Path("runs/scenes-plateau-wide64"),
    ]
    recipes = [options.benches(options.folder())[0].recipe for options in (plain, wide)]
    assert [recipe.width for recipe in recipes] == [REGIMES["plateau"].width, 64]
    assert {recipe.head_width for recipe in recipes} == {REGIMES["plateau"].head_width}


def test_a_width_that_no_attention_can_share_out_is_refused():
    with pytest.raises(ValueError, match="width=25: 2 heads do not divide it"):
        Options("scenes", width=25).benches(Path())


def test_fewer_steps_insert_no_later_than_in_their_first_tenth():
    recipe = Options("scenes", regime="transfer", steps=50).benches(Path())[0].recipe
    assert (recipe.steps, recipe.expand_at) == (50, 5)


def test_seeds_are_needed_and_each_is_run_once():
    assert [bench.seed for bench in Options("scenes", seeds=(3, 1, 3)).benches(Path())] == [3, 1]
    with pytest.raises(ValueError, match="seeds: give at least one"):
        Options("scenes", seeds=()).benches(Path())


def test_a_file_in_the_place_of_the_results_is_refused_before_anything_runs(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit, match=r"taken' is a file: give a folder for the results"):
        cli.main(["bench", "scenes", "--out", str(tmp_path / "taken")])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_data_for_a_suite_that_reads_none_are_refused():
    with pytest.raises(SystemExit, match=r"data='nowhere': the suite 'scenes' is rendered and reads none"):
        cli.main(["tune", "scenes", "--data", "nowhere"])


@pytest.mark.parametrize("place", ["", "none.jsonl"])
def test_a_table_of_no_file_is_refused(tmp_path: Path, place: str):
    with pytest.raises(SystemExit, match=r"is no file: give the results\.jsonl of a folder"):
        cli.main(["table", str(tmp_path / place)])
