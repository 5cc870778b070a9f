"""The page of a report: the verdict first, nothing is fetched, names are text, every figure is there and can be read."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import dtme
from dtme.plan.cost import BlockFlops, ModelFlops
from dtme.plan.rates import SPECTRUM
from dtme.report.style import CSS, rate_cell

TASKS = ("depth", "edges", "semseg")
BLOCKS = tuple(f"trunk.blocks.{place}" for place in range(4))


def rates(*, seed: int = 0, tasks: tuple[str, ...] = TASKS, blocks: tuple[str, ...] = BLOCKS) -> torch.Tensor:
    drawn = torch.rand(len(blocks), len(tasks), len(tasks), generator=torch.Generator().manual_seed(seed)) / 2
    both = (drawn + drawn.mT) / 2
    return both * (1 - torch.eye(len(tasks)))


def make_report(tasks: tuple[str, ...] = TASKS, blocks: tuple[str, ...] = BLOCKS) -> dtme.ConflictReport:
    like = {"tasks": tasks, "blocks": blocks}
    width = torch.full((len(blocks), len(tasks), len(tasks)), 0.01)
    pairing = tuple(tuple("" if a == b else "shared" for b in tasks) for a in tasks)
    flops = ModelFlops(10, {block: BlockFlops(100, updates=(2, 0)) for block in blocks})
    return dtme.ConflictReport(
        tasks,
        blocks,
        (64,) * len(blocks),
        (12,) * len(blocks),
        rates(**like),
        rates(seed=1, **like),
        width,
        width,
        96,
        pairing,
        (0.0,) * len(blocks),
        100.0,
        0.95,
        undecided=blocks[1:3],
        gradient_size=1 + torch.arange(len(tasks)).float().mul(4).expand(len(blocks), -1),
        flops=flops,
        range_chance=rates(seed=2, **like),
        null_chance=rates(seed=3, **like),
        range_chance_halfwidth=width,
        null_chance_halfwidth=width,
        notes=("Read were 96 samples.",),
        spectrum=10 ** torch.linspace(0, -9, SPECTRUM).expand(len(blocks), -1),
    )


def page_of(report: dtme.ConflictReport, folder: Path, **beside: object) -> str:
    report.to_html(folder / "report.html", **beside)  # pyright: ignore[reportArgumentType]
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_verdict_comes_first_and_says_what_is_not_settled(tmp_path: Path):
    text = page_of(make_report(), tmp_path)
    verdict, rest = text.split("</section>", 1)
    assert "Most conflict in trunk.blocks." in verdict
    assert "2 of 4 blocks might as well be in the other half of the ranking: their choice is a coin flip" in verdict
    assert "The losses are uneven: semseg pulls 9.0 times as hard as the weakest task." in verdict
    assert "Against chance, the same between gradients of different samples, at 95%" in verdict
    assert "has not beaten chance" in rest


def test_every_rate_stands_in_a_cell(tmp_path: Path):
    report = make_report()
    text = page_of(report, tmp_path)
    cells = re.findall(r'<td class="rate(?: deep)?" style="--share:\d+%">([0-9.]+)</td>', text)
    pairs = [(0, 1), (0, 2), (1, 2)]
    scores = [x for row in zip(report.range_score().tolist(), report.null_score().tolist(), strict=True) for x in row]
    expected = scores + [
        float(rate[b, i, j]) for rate in (report.range_rate, report.null_rate) for b in range(4) for i, j in pairs
    ]
    assert cells == [f"{rate:.2f}" for rate in expected]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """As WCAG 2 defines it."""
    light = []
    for colour in (one, other):
        linear = [own / 255 / 12.92 if own <= 10.31475 else ((own / 255 + 0.055) / 1.055) ** 2.4 for own in colour]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(light) / min(light)


def test_what_stands_on_a_colour_can_be_read():
    found = re.findall(r"--(ink|soft|ground|tint|link|most): (#\w{6})", CSS)
    of_all = [(name, tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))) for name, colour in found]
    light, dark = dict(of_all[:6]), {**dict(of_all[:6]), **dict(of_all[6:])}
    for theme in (light, dark):
        for ink in ("ink", "soft", "link"):
            assert min(contrast(theme[ink], theme[ground]) for ground in ("ground", "tint")) >= 4.5
        for step in range(101):
            cell = rate_cell(0.2 + 0.006 * step)
            assert f"--share:{step}%" in cell
            mixed = tuple(
                own + (most - own) * step / 100 for own, most in zip(theme["ground"], theme["most"], strict=True)
            )
            ink = (0, 0, 0) if theme is light and "deep" not in cell else (255, 255, 255)
            assert contrast(mixed, ink) >= 4.5


def test_chance_is_told_as_above_below_and_not_told_apart(tmp_path: Path):
    report = make_report()
    at = report.range_rate.clone()
    at[0], at[1] = at[0] / 2, at[1] * 1.5  # above chance in the first block, below it in the second
    text = page_of(dataclasses.replace(report, range_chance=at, null_chance=None), tmp_path)
    assert "1 of 4 blocks above, 1 below, 2 not told apart" in text


def test_energies_are_drawn_with_the_cut_at_the_rank(tmp_path: Path):
    report = make_report()
    text = page_of(report, tmp_path)
    assert text.count("<svg") == 4
    (curve,) = set(re.findall(r'class="curve" d="M([^"]+)"', text))
    points = [tuple(map(float, point.split(","))) for point in curve.split()]
    assert len(points) == SPECTRUM
    assert points[0] == (0, 1)
    assert points[-1] == (100, 49)  # nine powers of ten down, of which eight are drawn
    cut = set(re.findall(r'class="cut" d="M([0-9.]+) 0V50"', text))
    assert cut == {f"{100 * 11.5 / 63:.1f}"}  # between the twelfth of 64 directions and the next
    assert "<svg" not in page_of(dataclasses.replace(report, spectrum=None), tmp_path)


def test_a_saved_report_gives_the_same_page(tmp_path: Path):
    report = dataclasses.replace(make_report(), spectrum=torch.rand(4, SPECTRUM))
    text = page_of(report, tmp_path)
    report.save(tmp_path / "report.json")
    assert page_of(dtme.ConflictReport.load(tmp_path / "report.json"), tmp_path) == text


def test_many_pairs_take_several_tables(tmp_path: Path):
    many = tuple(f"t{place}" for place in range(6))
    text = page_of(make_report(tasks=many), tmp_path)
    assert "null space, pairs 11 to 15 of 15; colours from 0.2 to 0.8." in text
    for i, first in enumerate(many):
        for second in many[i + 1 :]:
            assert text.count(f'<th scope="col">{first} – {second}</th>') == 2


def test_a_plan_is_shown_with_its_streams_and_price(tmp_path: Path):
    report = make_report()
    plan = dtme.Plan(TASKS, adapt={"trunk.blocks.2": ("depth",)}, rank=3)
    text = page_of(report, tmp_path, plan=plan)
    table = text[text.index("The plan over the trunk") :].split("</section>")[0]
    assert table.count('<span class="stream">') == 1 + 1 + 2 + 2
    assert "updates of rank 3 for depth" in table
    # 10 once, two blocks for one stream, two for two, and rank 3 in both streams of a block: 3 x 2
    assert f"takes {(10 + 100 * 2 + 200 * 2 + 2 * 6) / 410:.2f} times the plain model" in table
    assert "depends on the layers" in table
    assert "The plan adds 256 parameters." in page_of(report, tmp_path, plan=dtme.Plan(TASKS, {BLOCKS[3]: TASKS[:2]}))
    with pytest.raises(ValueError, match=r"plan: block 'other' is not among those of the report"):
        report.to_html(tmp_path / "other.html", plan=dtme.Plan(TASKS, {"other": TASKS}))
    assert not (tmp_path / "other.html").exists()


def test_results_are_shown_or_refused(tmp_path: Path):
    text = page_of(
        make_report(),
        tmp_path,
        results=[{"method": "MT", "delta_m": -1.25}, {"method": "TM+TE", "delta_m": 0.5, "metrics": {"depth": 0.61}}],
    )
    assert '<th scope="row">TM+TE</th><td>0.5</td><td>0.61</td>' in text
    assert '<th scope="row">MT</th><td>-1.25</td><td></td>' in text
    assert "delta_m is the mean gain" in text
    with pytest.raises(ValueError, match="results: a list of rows is wanted"):
        make_report().to_html(tmp_path / "no.html", results=3)


def test_names_are_text_and_nothing_is_fetched(tmp_path: Path):
    bad = '<script>alert("x")</script>'
    report = make_report(tasks=(bad, "b & c"), blocks=("<img src=x onerror=y>", "z"))
    text = page_of(report, tmp_path, results=[{"method": bad, "more": "<b>"}])
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r"<[^>&]*\b(?:src|href)=|url\(|@import", text)
    assert text.count("<table>") == text.count("</table>") == 5


def test_json_is_the_saved_report(tmp_path: Path):
    report = make_report()
    report.to_json(tmp_path / "a.json")
    report.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
