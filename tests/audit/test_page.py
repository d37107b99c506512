"""audit.html: what its rows say, and that it filters and fits in a browser."""

from __future__ import annotations

import copy
import os
import re
import shutil
from pathlib import Path

import pytest
from browser import Browser, headless
from made_up_audit import MODELS, VERDICTS, audit_content

from regaze.audit.page import (
    FIGURE_COLUMNS,
    MARKS,
    VERDICT_COLUMNS,
    audit_page,
    figure_rows,
    verdict_counts,
    verdict_rows,
)


@pytest.fixture(scope="module")
def content():
    return audit_content()


def texts(row, columns):
    return {column.title: cell.text for column, cell in zip(columns, row.cells, strict=True)}


def test_a_verdict_has_its_reason_its_values_and_its_cost(content):
    rows = list(verdict_rows(content))
    assert len(rows) == len(MODELS) * len(VERDICTS)
    assert texts(rows[0], VERDICT_COLUMNS) == {
        "method": "pai",
        "model": "one",
        "verdict": "better",
        "why": "because of pai",
        "chosen": "alpha=0.5",
        "damage check": "mmstar -3.0 [-7.0, +1.0]; perplexity 12.0 to 12.1",
        "time per token": "1.25 x",
        "other trainings": "other verdicts",
    }
    assert rows[0].data["edits"] == "scores|logits"
    assert texts(rows[2], VERDICT_COLUMNS)["damage check"].endswith("perplexity 12.0 to 13.5: damaged")
    assert texts(rows[3], VERDICT_COLUMNS)["damage check"] == "not checked"
    assert rows[3].data["edits"] == ""  # a method that is not installed
    assert texts(rows[3], VERDICT_COLUMNS)["time per token"] == ""
    assert verdict_counts(content["models"])["two"] == {
        "no difference shown": 1,
        "explained by a control": 1,
        "damages": 1,
        "not run": 1,
    }


def test_a_method_without_a_perplexity_says_why(content):
    changed = copy.deepcopy(content)
    method = next(iter(next(iter(changed["models"].values()))["methods"].values()))
    method["damage"]["text"] = {"error": "it excludes tokens of 2 of 8 passages", "damaged": None}
    said = texts(next(verdict_rows(changed)), VERDICT_COLUMNS)["damage check"]
    assert said == "mmstar -3.0 [-7.0, +1.0]; no perplexity: it excludes tokens of 2 of 8 passages"


def test_figures_are_in_points_to_plain_and_to_the_best_control(content):
    rows = list(figure_rows(content))
    assert [(row.data["benchmark"], row.data["decides"]) for row in rows[:2]] == [
        ("pope", "yes"),
        ("captions", "no"),
    ]
    found = texts(rows[0], FIGURE_COLUMNS)
    assert found["to plain"] == "+10.0 [+8.0, +12.0]"
    assert found["to best control"] == "+9.0 [+7.0, +11.0]"
    assert found["other controls"] == "prefer-yes +40.0 [+38.0, +42.0]"
    assert (found["value"], found["plain"], found["could show"]) == ("90.0", "80.0", "2.5")
    captions = texts(rows[1], FIGURE_COLUMNS)
    assert captions["figure"] == "CHAIR_s (less is better)"
    assert captions["to best control"] == captions["best control"] == ""


def test_figures_that_are_no_shares_stand_as_they_are(content):
    entry = {
        **content["models"]["one"]["methods"]["pai"]["benchmarks"]["pope"],
        "share": False,
        "plain": 80.0,
    }
    changed = {**content, "models": {"one": {**content["models"]["one"]}}}
    changed["models"]["one"]["methods"] = {
        "pai": {**content["models"]["one"]["methods"]["pai"], "benchmarks": {"amber": entry}}
    }
    found = texts(next(figure_rows(changed)), FIGURE_COLUMNS)
    assert (found["plain"], found["to plain"]) == ("80.0", "+0.1 [+0.1, +0.1]")


def test_the_page_needs_no_other_file_and_tells_verdicts_by_shape_and_word(content):
    page = audit_page(content)
    assert re.findall(r'(?:src|href)="', page) == []
    assert "random heads &lt;i&gt;" in page
    for word, mark in MARKS.items():
        assert f'data-word="{word}"><span aria-hidden="true">{mark}</span> {word}</span>' in page
    assert len(set(MARKS.values())) == 6
    assert "not complete" not in page
    assert "not complete" in audit_page({**content, "complete": False})


@pytest.fixture(scope="module")
def shown(content, tmp_path_factory):
    """A browser with the page open."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no chromium")
    folder = tmp_path_factory.mktemp("page")
    (folder / "audit.html").write_text(audit_page(content), encoding="utf-8")
    driver = headless(*map(str, programs))
    yield Browser(driver, folder)
    driver.quit()


def visit(shown: Browser, fragment: str = "") -> None:
    shown.driver.get("about:blank")
    shown.driver.get((shown.folder / "audit.html").as_uri() + fragment)
    shown.wait("document.documentElement.dataset.ready === '1'")


NAMES = """return [...document.querySelectorAll('table.sortable')].map((table) =>
    [...table.querySelectorAll('tbody tr:not([hidden]) th')].map((cell) => cell.dataset.name))"""


@pytest.mark.browser
def test_filters_are_of_both_tables_and_a_link_restores_them(shown):
    visit(shown)
    assert shown.text("#count") == "8 of 8 verdicts, 12 of 12 figures"
    visit(shown, "#model=two&verdict=damages&decides=yes")
    assert shown.run(NAMES) == [["dola"], ["dola"]]
    visit(shown, "#edits=logits&benchmark=pope&sort2=-4")
    assert shown.run(NAMES)[1] == ["pai", "pai", "vcd", "vcd", "dola", "dola"]
    shown.click("table.sortable thead th.verdict button")
    sort = "return [...document.querySelectorAll('th.verdict')].map((head) => head.getAttribute('aria-sort'))"
    assert shown.run(sort) == ["ascending"]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_is_no_wider_than_the_window_and_quiet(shown, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    shown.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    visit(shown)
    assert shown.run("return document.documentElement.scrollWidth") <= width
    assert shown.complaints() == []
    assert shown.requests() == []
    if folder := os.environ.get("REGAZE_SCREENSHOTS"):
        shown.driver.save_screenshot(str(Path(folder) / f"audit-{width}.png"))
    shown.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
