"""The tables of the documentation are those of the committed results."""

import json
from pathlib import Path

import pytest

from dtme.bench.lines import read_lines, rows_of, write_lines
from dtme.bench.pages import fill, filled
from dtme.bench.table import markdown

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_table_has_drifted_from_its_results(page: Path):
    text = page.read_text(encoding="utf-8")
    assert filled(text, ROOT) == text, "make tables"


def test_a_table_is_made_of_the_rows_it_names(tmp_path: Path):
    page = tmp_path / "page.md"
    before = "Above.\n\n<!-- table results/demo.json: MT; TM+TE -->\nold\n<!-- end of table -->\n\nBelow.\n"
    page.write_text(before, encoding="utf-8")
    assert fill(page, ROOT)
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    lines = text.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == ["", "---", "MT", "TM+TE"]
    assert text.startswith("Above.")
    assert text.endswith("Below.\n")
    assert not fill(page, ROOT)


def test_scores_of_blocks_have_tables_of_their_own(tmp_path: Path):
    chance = {"range_score": 0.25, "range_chance_score": 0.5, "null_score": 0.3, "null_chance_score": 0.49}
    (tmp_path / "chance.json").write_text(json.dumps({"scores": {"scenes": {"as drawn": chance}}}))
    text = filled("<!-- table chance.json -->\n<!-- end of table -->", tmp_path)
    assert "| scenes | as drawn | 0.250 | 0.500 | 0.300 | 0.490 |" in text
    found = {"modulators": {"depth": 0.5, "imbalance": -1.0}, "low-rank updates": {"depth": 1.0, "imbalance": 0.25}}
    (tmp_path / "probe.json").write_text(json.dumps({"correlations": found}))
    text = filled("<!-- table probe.json -->\n<!-- end of table -->", tmp_path)
    assert "| | modulators | low-rank updates |" in text
    assert "| imbalance | -1.00 | +0.25 |" in text


def test_methods_are_compared_seed_by_seed():
    path = "results/nuclei-plateau.jsonl"
    text = filled(f"<!-- compare {path}: Adapt last block > MT 2x -->\n<!-- end of table -->", ROOT)
    runs = read_lines(ROOT / path)
    own, other = (rows_of(runs, name) for name in ("Adapt last block", "MT 2x"))
    differences = [own[seed]["delta_m"] - other[seed]["delta_m"] for seed in own]
    assert f"| Adapt last block against MT 2x | {sum(differences) / len(differences):+.2f} ± " in text
    two = filled(f"<!-- compare {path} seeds 1 3: Adapt last block > MT 2x -->\n<!-- end of table -->", ROOT)
    assert f"| Adapt last block against MT 2x | {(differences[1] + differences[3]) / 2:+.2f} ± " in two
    with pytest.raises(ValueError, match="cannot compare 'MT 2x > TN'"):
        filled(f"<!-- compare {path}: MT 2x > TN -->\n<!-- end of table -->", ROOT)


def test_text_tasks_are_compared_by_their_mean_score(tmp_path: Path):
    rows = [
        {"method": "TM", "mean": 71.5, "measures": {}, "wall_clock_ratio": 1.25},
        {"method": "TE", "mean": 70.0, "measures": {}, "wall_clock_ratio": 1.0},
    ]
    later = [{**row, "mean": row["mean"] + 1 + (row["method"] == "TE")} for row in rows]
    runs = [
        {"suite": "glue", "tasks": [], "settings": {"seed": seed}, "rows": own}
        for seed, own in enumerate((rows, later))
    ]
    write_lines(tmp_path / "glue.jsonl", runs)
    text = filled("<!-- compare glue.jsonl: TM > TE -->\n<!-- end of table -->", tmp_path)
    assert "| | mean score, difference |" in text
    assert "| TM against TE | +1.00 ± " in text
    assert "| 1.25 x against 1.00 x |" in text


def test_a_row_that_was_not_run_is_named():
    with pytest.raises(ValueError, match=r"no row .TN.; it has ST, MT"):
        filled("<!-- table results/demo.json: TN -->\n<!-- end of table -->", ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*-plateau.jsonl")), ids=lambda path: path.name)
def test_committed_lines_make_a_table_over_seeds(path: Path):
    runs = read_lines(path)
    assert len(runs) > 1
    assert "against MT" in markdown(runs)
