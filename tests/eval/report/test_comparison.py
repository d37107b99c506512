"""comparison.html: what its rows say, and that it sorts and filters in a browser."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, headless
from standins import Blind, StandIn, write_pope

from regaze.eval import EvalConfig, EvalTask, evaluate
from regaze.eval.report.comparison import COLUMNS, comparison_page, comparison_rows
from regaze.eval.report.report import write_report


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("compared")
    rows = [(image, label) for image in "abcdefghij" for label in ("yes", "no", "no")]
    methods = {"blind": Blind(), "half": Blind(0.5), "none": Blind(0.0)}
    made = evaluate(
        StandIn(),
        [EvalTask(write_pope(folder, rows), {})],
        methods,
        folder / "out",
        model_name="m",
        config=EvalConfig(),
    )
    methods = made["benchmarks"]["pope"]["methods"]
    methods["none"]["error"] = "no such <b>layer</b>"
    (split,) = methods["half"]["figures"]
    methods["half"]["figures"][split]["official"]["difference"]["accuracy"]["value"] = 0.99
    return made


def texts(row: Any) -> dict[str, str]:
    return {column.title: cell.text for column, cell in zip(COLUMNS, row.cells, strict=True)}


def test_rows_say_what_the_tables_say(results):
    rows = list(comparison_rows(results))
    blind = next(row for row in rows if row.cells[0].text == "blind" and row.tested)
    figures = results["benchmarks"]["pope"]["methods"]["blind"]["figures"]
    (scores,) = figures.values()
    figures = scores["official"]
    assert blind.figure == "accuracy"
    assert texts(blind)["value"].startswith(f"{100 * figures['edited']['accuracy']['value']:.1f}")
    assert blind.cells[3].number == figures["difference"]["accuracy"]["value"]
    assert blind.significant == (figures["difference"]["holm_p"] < 0.05)
    assert sum(row.tested for row in rows) == 3  # one row per method
    failed = next(row for row in rows if row.cells[0].text == "none")
    assert texts(failed)["difference"] == "cannot run: no such <b>layer</b>"
    assert not failed.significant


def test_the_page_needs_no_other_file_and_shows_texts_as_texts(results, tmp_path):
    page = comparison_page(results)
    assert "no such &lt;b&gt;layer" in page
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["report.html"]
    assert ">damage<" not in page  # columns without anything are left out
    write_report(results, tmp_path)
    assert (tmp_path / "comparison.html").read_text(encoding="utf-8") == page
    assert 'href="comparison.html"' in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(results, tmp_path_factory):
    """A browser with the page open."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no chromium")
    folder = tmp_path_factory.mktemp("page")
    write_report(results, folder)
    driver = headless(*map(str, programs))
    yield Browser(driver, folder)
    driver.quit()


def visit(shown: Browser, fragment: str = "") -> None:
    shown.driver.get("about:blank")
    shown.driver.get((shown.folder / "comparison.html").as_uri() + fragment)
    shown.wait("document.documentElement.dataset.ready === '1'")


NAMES = (
    """return [...document.querySelectorAll('tbody tr:not([hidden]) th')].map((cell) => cell.dataset.name)"""
)


def fill(shown: Browser, **values: str) -> None:
    for name, value in values.items():
        script = """const input = document.getElementById(arguments[0]);
            if (input.type === 'checkbox') input.click(); else input.value = arguments[1];
            input.dispatchEvent(new Event('input', {bubbles: true}))"""
        shown.run(script, name, value)


@pytest.mark.browser
def test_a_click_on_a_heading_sorts_and_says_so(shown):
    visit(shown)
    assert shown.run(NAMES) == ["blind", "half", "none"]
    sort = "return [...document.querySelectorAll('thead th')].map((head) => head.getAttribute('aria-sort'))"
    shown.click("thead th.difference button")
    assert shown.run(sort)[3] == "descending"
    # The last has no number, and so comes last in either direction.
    assert shown.run(NAMES) == ["half", "blind", "none"]
    shown.click("thead th.difference button")
    assert shown.run(NAMES) == ["blind", "half", "none"]
    assert shown.run(sort) == ["none"] * 3 + ["ascending"] + ["none"] * (len(shown.run(sort)) - 4)


@pytest.mark.browser
def test_the_keyboard_sorts_and_a_link_restores_the_view(shown):
    from selenium.webdriver.common.keys import Keys

    visit(shown)
    shown.run("document.querySelector('thead th button').focus()")
    shown.press(Keys.ENTER, " ")
    assert shown.run(NAMES) == ["none", "half", "blind"]
    fill(shown, text="pope", figure="recall")
    assert shown.run(NAMES) == ["half", "blind"]
    fragment = shown.run("return location.hash")
    visit(shown, fragment)
    assert shown.run(NAMES) == ["half", "blind"]
    assert (
        shown.text("#count")
        == f"2 of {shown.run('return document.querySelectorAll(`tbody tr`).length')} rows"
    )


@pytest.mark.browser
def test_filters_leave_the_rows_that_match(shown, results):
    visit(shown)
    fill(shown, text="BLIND acc")
    assert shown.run(NAMES) == ["blind"]
    fill(shown, text="", figure="*")
    assert shown.run(NAMES).count("half") == len({row.figure for row in comparison_rows(results)} - {""})
    fill(shown, figure="", significant="")
    expected = {row.cells[0].text for row in comparison_rows(results) if row.tested and row.significant}
    assert set(shown.run(NAMES)) == expected
    fill(shown, kind="control")
    assert shown.run(NAMES) == []
    shown.click("button[type=reset]")
    shown.wait("document.querySelectorAll('tbody tr:not([hidden])').length === 3")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1300, 700, 400])
def test_the_page_is_no_wider_than_the_window_and_quiet(shown, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    shown.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    visit(shown)
    assert shown.run("return document.documentElement.scrollWidth") <= width
    assert shown.complaints() == []
    assert shown.requests() == []
    if folder := os.environ.get("REGAZE_SCREENSHOTS"):
        shown.driver.save_screenshot(str(Path(folder) / f"comparison-{width}.png"))
    shown.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
