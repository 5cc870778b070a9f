"""The page in a real Chromium: in light and dark, on a phone, on paper. What it shows is told by the browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report_page import make_report

import dtme

TASKS = ("semseg", "depth", "normals", "edges", "saliency")
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "vision": (TASKS[:3], tuple(f"trunk.blocks.{place}" for place in range(4))),
    "text": (("sst2", "mnli", "qqp"), tuple(f"bert.encoder.layer.{place}" for place in range(6))),
    "large": (TASKS, tuple(f"trunk.blocks.{place}" for place in range(12))),
    "long names": (("surface_normals_of_the_room", "b"), tuple(f"{x}.{'residual' * 5}" for x in "ab")),
}
PAPER = {"width": 718, "height": 1047}  # A4 at 96 points an inch, within its margins


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    driver = pytest.importorskip("playwright.sync_api", reason="axe-playwright-python is not installed")
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=CASES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks, blocks = CASES[request.param]
    path = tmp_path_factory.mktemp("page") / "report.html"
    plan = dtme.Plan(tasks, {blocks[-1]: tasks}, {blocks[-2]: tasks[:2]})
    rows = [{"method": name, "delta_m": -1.5, "metrics": dict.fromkeys(tasks, 41.2)} for name in ("MT", "TM+TE")]
    make_report(tasks, blocks).to_html(path, plan=plan, results=rows)
    return path


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_asked_for(browser: Any, page: Path, scheme: str, width: int):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    shown = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    asked: list[str] = []
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(page.as_uri())
    ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}[scheme]
    found = axe.run(shown).response
    assert [(rule["id"], [node["html"] for node in rule["nodes"]][:3]) for rule in found["violations"]] == []
    assert len(found["passes"]) > 15
    assert asked == [page.as_uri()]
    shown.close()


def test_a_phone_shows_it_without_overflow(browser: Any, page: Path):
    shown = browser.new_page(viewport={"width": 360, "height": 740})
    shown.goto(page.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    beyond = """[...document.querySelectorAll("h1, h2, p, li, figcaption, svg, .wide")]
        .filter(one => one.getBoundingClientRect().right > 360).length"""
    assert shown.evaluate(beyond) == 0
    shown.close()


def test_on_paper_nothing_is_cut_off_small_or_parted(browser: Any, page: Path):
    shown = browser.new_page(color_scheme="dark", viewport=PAPER)
    shown.emulate_media(media="print")
    shown.goto(page.as_uri())
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    beyond = f"""[...document.querySelectorAll("table, p, svg")]
        .filter(one => one.getBoundingClientRect().right > {PAPER["width"]}).map(one => one.textContent.slice(0, 40))"""
    assert shown.evaluate(beyond) == []
    sizes = """Math.min(...[...document.querySelectorAll("main *")].filter(one => one.textContent.trim())
        .map(one => parseFloat(getComputedStyle(one).fontSize)))"""
    assert shown.evaluate(sizes) >= 7 * 96 / 72
    kept = """[...document.querySelectorAll("section")].every(one => getComputedStyle(one).breakInside === "avoid")"""
    assert shown.evaluate(kept)
    printed = (
        """[...document.querySelectorAll(".rate")].every(one => getComputedStyle(one).printColorAdjust === "exact")"""
    )
    assert shown.evaluate(printed)
    assert shown.pdf(format="A4").startswith(b"%PDF")
    shown.close()
