"""The tables of the documentation are those of the committed results."""

import json
from pathlib import Path

import pytest

from experiments.ablations import ablation_of
from experiments.runner.jsonl import read_lines, rows_of, write_lines
from experiments.tables.doc_tables import fill, filled
from experiments.tables.table import markdown

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
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


def lines_of(suite: str, ablation: str, tmp_path: Path, **figures: object) -> None:
    """Results of an ablation over two seeds, each arm better than the one before it."""
    folder = tmp_path / "results" / "ablations"
    folder.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(["MT", *(method.name for _, method in ablation_of(ablation).arms)])
    runs = [
        {
            "suite": suite,
            "tasks": [],
            "settings": {"seed": seed},
            "rows": [
                {"method": name, "delta_m": place + 0.25 * seed * place, "wall_clock_ratio": 1.5, **figures}
                for place, name in enumerate(names)
            ],
        }
        for seed in range(2)
    ]
    write_lines(folder / f"{suite}-{ablation}.jsonl", runs)


def test_an_ablation_is_a_table_suite_beside_suite(tmp_path: Path):
    lines_of("scenes", "rank", tmp_path)
    page = "<!-- ablation rank -->\nold\n<!-- end of table -->"
    one = filled(page, tmp_path).splitlines()
    assert one[2] == "| rank | scenes: Δm over MT | scenes: p | scenes: wall-clock |"
    assert one[4].startswith("| 1 | +1.12 ± 1.59 | 0.070 | 1.50 x |")
    lines_of("nuclei", "rank", tmp_path)
    both = filled(page, tmp_path).splitlines()
    assert both[2].startswith("| rank | nuclei: Δm over MT | nuclei: p | nuclei: wall-clock | scenes: Δm over MT |")
    assert [line.split(" | ")[0] for line in both[4:8]] == ["| 1", "| 4", "| 8", "| 16"]


def test_an_ablation_of_conflict_tells_what_training_did_to_it(tmp_path: Path):
    before, after = {"range": 0.4, "null": 0.5}, {"range": 0.45, "null": 0.48}
    lines_of("nuclei", "conflict", tmp_path, conflict_before=before, conflict=after)
    lines = filled("<!-- ablation conflict -->\n<!-- end of table -->", tmp_path).splitlines()
    assert lines[2] == "| method | nuclei: range space | nuclei: null space |"
    assert lines[4] == "| MT | +5.0 ± 0.0 | -2.0 ± 0.0 |"


def test_an_ablation_of_the_analysis_shows_its_price(tmp_path: Path):
    lines_of("nuclei", "analysis", tmp_path, analysis_share=0.042)
    text = filled("<!-- ablation analysis -->\n<!-- end of table -->", tmp_path)
    assert "| nuclei: analysis |" in text
    assert "| 4.2 % |" in text


def test_an_ablation_without_results_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="has no results of 'rank': run `python -m experiments ablate rank SUITE`"):
        filled("<!-- ablation rank -->\n<!-- end of table -->", tmp_path)
