from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import torch

from dtme import Plan
from experiments.page.page import count, duration, number, percent, signed, times, write_page

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """The text outside of styles, every start tag, and a check that tags close in order."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def html(tmp_path_factory, make_report, make_results, make_samples):
    path = tmp_path_factory.mktemp("page") / "runs" / "report.html"
    report = make_report(4, 4)
    write_page(path, make_results(report.tasks), report, report.plan(), make_samples())
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_every_value_of_the_table_is_there(page, make_report, make_results):
    results = make_results(make_report(4, 4).tasks)
    for row in results["rows"]:
        values = [number(value) for value in row["metrics"].values()]
        values += [signed(row["delta_m"]), count(row["parameters_added"]), percent(row["parameters_added_percent"])]
        values += [times(row["step_cost"]), times(row["inference_cost"])]
        values += [duration(row["wall_clock"]), times(row["wall_clock_ratio"])]
        values += [signed(gain) for gain in row["gains"].values()] if row["method"] != "ST" else []
        for value in values:
            assert value in page.text
    for fact in (
        "python -m experiments demo",
        "2 cores",
        "4 min 32 s",
        "torch 2.15.0",
        "1,000",
        "0.0003",
        "Every row starts",
        "trunk.blocks.6",
    ):
        assert fact in page.text


def test_it_is_one_file_that_asks_for_nothing(html, page):
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert re.match(r"#|data:image/png;base64,", attributes.get(name) or "#"), f"{tag} {name}"
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    named = re.findall(r'xmlns(?::xlink)?="https?://', html)
    assert len(re.findall("https?://", html)) == len(named) == 8  # the names of two formats in four figures, no links


def test_figures_are_well_formed_and_their_ids_differ(html):
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        ElementTree.fromstring(figure)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html):
        assert (reference[0] or reference[1]) in ids


def test_photographs_are_inside(html):
    # Two images in two bands, each with truth and two methods in five tasks; and the scale of colours.
    assert html.count("data:image/png;base64,") == 2 * (2 + 5 * 3) + 1


def test_it_can_be_heard_and_navigated(page):
    pictures = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(pictures) == 4
    assert all(len(picture["aria-label"]) > 40 for picture in pictures)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert [attributes["lang"] for tag, attributes in page.tags if tag == "html"] == ["en"]
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings == ["h1"] + ["h2"] * 6


def test_both_colour_schemes_and_paper(html):
    assert "@media (prefers-color-scheme: dark)" in html
    assert "@media print" in html


def test_the_same_input_gives_the_same_page(html, make_report, make_results, make_samples, tmp_path):
    report = make_report(4, 4)
    write_page(tmp_path / "again.html", make_results(report.tasks), report, report.plan(), make_samples())
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def written(tmp_path, results):
    write_page(tmp_path / "page.html", results, None, None, None)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def highlighted(html):
    """The methods whose rows are shaded."""
    return re.findall(r'<tr class="ours">\s*<th scope="row">([^<]*)', html)


def test_the_row_of_the_headline_alone_is_shaded(make_results, tmp_path):
    methods = ("ST", "MT", "MT 2x", "TM", "TM+TE", "Adapt last block")
    assert highlighted(written(tmp_path, make_results(methods=methods))) == ["TM+TE"]
    assert highlighted(written(tmp_path, make_results(methods=("ST", "MT")))) == []


def test_a_wide_table_lets_names_wrap_and_its_caption_stay(html):
    style = html.split("</style>", 1)[0]
    assert re.search(r"\.wide th { white-space: normal; }", style)
    assert re.search(r"caption span {[^}]*position: sticky;[^}]*max-width: 100cqi;", style)
    # What is only heard is placed absolutely: without a place of its own it would widen the page.
    assert re.search(r"\.scroll { position: relative; container-type: inline-size; overflow-x: auto;", style)
    assert html.count("<caption>") == html.count("<caption><span>") == 2


@pytest.mark.parametrize(("more", "words"), [(0, None), (1, "1 further method is in"), (8, "8 further methods are in")])
def test_six_curves_are_drawn_and_the_caption_counts_the_others(make_results, tmp_path, more, words):
    methods = ("ST", "MT", "TM", "TM+TE", "MT 2x", "PCGrad", *(f"Adapt r{rank} last block" for rank in range(more)))
    results = make_results(methods=methods)
    results["curves"] = {method: {"depth": [[0, 1.0], [9, 0.5]]} for method in methods}
    html = written(tmp_path, results)
    (label,) = (seen["aria-label"] for _, seen in Page(html).tags if seen.get("role") == "img")
    drawn = [method for method in methods if f"{method} depth 0.5" in label]
    assert len(drawn) == 6
    assert {"ST", "MT", "TM+TE"} <= set(drawn)
    if words is None:
        assert "further" not in html
    else:
        assert words in label
        assert words in html.split("<figcaption>")[1]


def test_names_are_text_and_never_markup(make_report, make_results, tmp_path):
    names = ("<b>x</b>", 'a" onload="y', "--><script>z()</script>")
    report = make_report(names, 2, blocks=("<i>.0", "<i>.1"))
    results = make_results(names)
    results["suite"] = "</title><script>"
    results["notes"] = ["<img src=x>"]
    results["rows"][-1]["streams_part_at"] = "<i>.1"
    write_page(tmp_path / "page.html", results, report, report.plan(), None)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"b", "i", "script", "img"}
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert "<b>x</b>" in page.text
    assert "&lt;b&gt;x&lt;/b&gt;" in html


@pytest.mark.parametrize("empty", [False, True])
def test_the_least_there_can_be(make_report, make_results, tmp_path, empty):
    report = make_report(2, 1)
    results = make_results(report.tasks, methods=("ST", "MT", "TE"))
    del results["curves"]
    for row in results["rows"]:
        del row["wall_clock"], row["step_cost"]
    write_page(tmp_path / "page.html", results, report, Plan(report.tasks) if empty else report.plan(), None)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "TM+TE:" in page.text  # explained, but without a row
    assert "Predictions" not in page.text
    assert "DTME (TE)" in page.text


def test_the_page_tells_how_large_the_gradients_are(make_report, make_results, tmp_path):
    sizes = torch.ones(12, 4, dtype=torch.float64)
    sizes[:, 1] = 16
    report = make_report(gradient_size=sizes)
    write_page(tmp_path / "page.html", make_results(report.tasks), report, None, None)
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert f"(geometric mean 1): {report.tasks[1]} 8, {report.tasks[0]} 0.5" in text
    assert "They are uneven" in text


def test_without_analysis_plan_and_samples(make_results, tmp_path):
    write_page(tmp_path / "page.html", make_results(methods=("ST", "MT")), None, None, None)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "nothing to compare yet: no DTME row" in page.text
    write_page(tmp_path / "page.html", make_results(), None, Plan(("semseg", "depth")), None)
    assert "The plan is empty" in Page((tmp_path / "page.html").read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "dtme.plan"}, "results has format 'dtme.plan'"),
        ({"version": 2}, "version 2, expected"),
        ({"rows": [{"method": "MT"}]}, r"results lacks rows\[0\].metrics"),
    ],
)
def test_results_that_are_none(make_results, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_page(tmp_path / "page.html", {**make_results(), **change}, None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_another_model_leaves_the_old_page(make_report, make_results, tmp_path):
    (tmp_path / "page.html").write_text("before")
    with pytest.raises(ValueError, match=r"lacks 'x\.9'"):
        write_page(
            tmp_path / "page.html",
            make_results(),
            make_report(2, 2),
            Plan(("semseg", "depth"), {"x.9": ("depth",)}),
            None,
        )
    assert (tmp_path / "page.html").read_text() == "before"
