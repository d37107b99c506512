"""Figures on pages are those of the committed results, and each has a command that measures it."""

from __future__ import annotations

import json
import re

import pytest
from made_up_audit import audit_content
from paths import ROOT

from regaze.interventions import registry


@pytest.fixture(scope="module")
def pages():
    """The module that writes the pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import pages

        yield pages


def test_every_region_is_what_the_results_say(pages):
    assert list(pages.problems()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<!-- figures: overhead -->\n| 1 |\n<!-- end -->",
            "README.md: 'overhead' is not what the results say",
        ),
        ("of <!-- figures: count methods -->7<!-- end --> methods", "'count methods' is not what"),
        ("<!-- figures: oversight -->\n<!-- end -->", "README.md: nothing makes the figures 'oversight'"),
        ("<!-- figures: overhead -->\n| 1 |\n", "README.md: a region that does not end"),
        ("| a | 0.5 [0.4, 0.6] |\n", "README.md: a table with intervals that no region makes"),
        ("| 1 |\n<!-- end -->\n", "README.md: a region that does not end, or ends twice"),
    ],
)
def test_a_page_that_says_something_else_is_named(pages, tmp_path, text, message):
    (tmp_path / "README.md").write_text(text)
    found = list(pages.problems(tmp_path))
    assert any(message in problem for problem in found)
    assert "no page shows the figures 'seeing-maps'" in found
    assert "docs/studies/seeing/speech.json: no page reads it" in found


def test_a_table_that_is_compared_with_a_command_needs_no_region(pages, tmp_path):
    table = "| a | 0.5 [0.4, 0.6] |\n"
    complaint = "README.md: a table with intervals that no region makes"
    (tmp_path / "README.md").write_text(f"<!-- output -->\n{table}")
    assert complaint not in pages.problems(tmp_path)
    (tmp_path / "README.md").write_text(f"<!-- output -->\n{table}\nAnd another:\n\n{table}")
    assert complaint in pages.problems(tmp_path)


def test_a_region_is_written_within_a_line_or_on_lines_of_its_own(pages):
    inline = "We have <!-- figures: count benchmarks -->no<!-- end --> benchmarks."
    assert re.fullmatch(inline.replace(">no<", r">\d\d<"), pages.rendered(inline))
    block = "<!-- figures: choices -->\n\n<!-- end -->\nthen"
    assert pages.rendered(block).startswith("<!-- figures: choices -->\n| | right | 95 % |")
    assert pages.rendered(block).endswith(" |\n<!-- end -->\nthen")


def test_the_damage_check_of_the_comparison_is_shown(pages, monkeypatch):
    from figures import demo

    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    loss = {"value": -0.2, "low": -0.3, "high": -0.1}
    method = {"value": estimate, "difference": loss, "detectable": 0.1, "p": 0.001, "damaged": True}
    check = {"benchmark": "mmstar", "error": None, "questions": 120, "figure": "accuracy", "plain": estimate}
    monkeypatch.setattr(demo, "read", lambda path: {"damage": {**check, "methods": {"dola": method}}})
    section = demo.comparison_damage()
    assert section.startswith("120 questions of mmstar. ")
    assert section.endswith("| dola | 50.0 [40.0, 60.0] | -20.0 [-30.0, -10.0] | 0.001 | 10.0 | yes |")


def test_the_tables_of_the_guide_are_those_of_its_commands(pages, monkeypatch):
    import guide as script
    from figures import guide

    page = script.PAGE.read_text(encoding="utf-8")
    measured = json.loads((ROOT / "benchmarks/results/guide.json").read_text(encoding="utf-8"))
    assert [each["command"] for each in measured] == script.commands(page)
    printed = "A text.\n\n|  | p | memory |\n| --- | --- | --- |\n| vcd | 0.5 | length +9%, memory +27% |\n"
    tables = script.tables(f"| other |\n| --- |\n| 1 |\n\n{printed}")
    assert tables == [[["other"], ["1"]], [["", "p", "memory"], ["vcd", "0.5", "length +9%"]]]
    monkeypatch.setattr(guide, "read", lambda path: [{"command": "regaze --output out", "tables": tables}])
    monkeypatch.setitem(guide.SHOWN, "mine", ("out", ("", "p")))
    assert guide.guide("mine") == "| | p |\n| --- | --- |\n| vcd | 0.5 |"


def test_numbers(pages):
    from figures.markdown import estimate, number, table

    assert (number(-0.001), number(0.125, 1), number(1234.5, 0)) == ("0.00", "0.1", "1,234")
    assert estimate({"value": 0.305, "low": -0.004, "high": 1}, 0, 100) == "30 [0, 100]"
    assert estimate({"value": None}) == ""
    assert table(["a", "b"], [["x", ""]], right=1) == "| a | b |\n| --- | ---: |\n| x | |"


REPORT = """<testsuites><testsuite timestamp="2026-11-29T10:00:00" time="61.5">
<testcase file="tests/a/test_x.py" name="one"/>
<testcase file="tests/a/test_x.py" name="two"><skipped/></testcase>
<testcase file="tests/b/test_y.py" name="three"><failure/></testcase>
</testsuite></testsuites>"""


def test_counts_of_a_run(pages, tmp_path, monkeypatch):
    import count_tests
    from figures import promises

    (tmp_path / "report.xml").write_text(REPORT)
    found = count_tests.counts(tmp_path / "report.xml")
    assert found["files"] == {
        "tests/a/test_x.py": {"passed": 1, "skipped": 1, "failed": 0},
        "tests/b/test_y.py": {"passed": 0, "skipped": 0, "failed": 1},
    }
    assert (found["date"], found["seconds"]) == ("2026-11-29", 62)
    (tmp_path / "counts.json").write_text(json.dumps(found))
    monkeypatch.setattr(promises, "COUNTS", str(tmp_path / "counts.json"))
    monkeypatch.setattr(promises, "PROMISES", (("It adds.", ("tests",)),))
    assert promises.promises().endswith("| It adds. | [tests/](../tests) | 1 (1) |")
    assert "1 passed, 1 skipped, 1 failed, in 1 minutes" in promises.last_run()


def test_what_stands_out_is_read_off_the_results(pages, monkeypatch):
    from figures import demo

    def benchmark(plain, **methods):
        def scores(values, way, p=None):
            made = {way: {name: {"value": value} for name, value in values.items()}}
            return {
                "figures": {"all": {"own": made | {"difference": {"holm_p": p}}}},
                "flags": ["length +20%"],
            }

        return {
            "numbers": {},
            "leading": ["all", "own"],
            "plain": scores(plain, "plain"),
            "methods": {name: scores(values, "edited", p) for name, (values, p) in methods.items()},
        }

    pope = benchmark({"accuracy": 0.9}, a=({"accuracy": 0.95}, 0.01), b=({"accuracy": 0.8}, 0.2))
    pope["methods"]["c"] = {"error": "no weights; give a folder"}
    plain = {"chair_s": 0.3, "recall": 0.7}
    captions = benchmark(
        plain, a=({"chair_s": 0.1, "recall": 0.5}, 0.01), b=({"chair_s": 0.5, "recall": 0.7}, 0.03)
    )
    monkeypatch.setattr(demo, "_compared", {"pope": pope, "captions": captions}.__getitem__)
    monkeypatch.setattr(demo, "BUILT_IN", {"d": None, "e": None})
    monkeypatch.setattr(demo.tables, "leading_scorer", lambda each: tuple(each["leading"]))
    assert demo.comparison_findings().splitlines() == [
        "- Yes/no: plain 90.0. After correction for the number of methods these raise the accuracy: "
        "a (+5.0). Nothing lowers it.",
        "- Captions: plain CHAIR_s 30.0 at recall 70.0. Lower after correction: a 10.0 at recall 50.0 "
        "(length +20%). Look at recall, length and repetition before believing a lower CHAIR.",
        "- CHAIR_s rises with b (+20.0).",
        "- c has no figures: no weights.",
        "- Not compared: d, e.",
    ]


def test_the_comparison_is_of_the_methods_in_its_file():
    compared = json.loads((ROOT / "docs/comparison-methods.json").read_text(encoding="utf-8"))
    assert {each["method"] for each in compared} <= set(registry.BUILT_IN)
    for name in ("pope", "captions"):
        found = json.loads((ROOT / f"benchmarks/results/comparison-{name}.json").read_text(encoding="utf-8"))
        assert set(found["benchmark"]["methods"]) <= {each["label"] for each in compared}


def estimates(value):
    """Every figure with an interval in a file of results."""
    if isinstance(value, dict):
        if {"value", "low", "high"} <= set(value) and value["value"] is not None:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from estimates(each)


#: Pages whose sentences name figures with intervals, and the files that these are from.
SENTENCES = {
    "studies/maps.md": ["docs/studies/seeing/study.json"],
    "studies/speech.md": ["docs/studies/seeing/speech.json"],
}


@pytest.mark.parametrize("page", SENTENCES)
def test_figures_in_sentences_are_in_the_results(pages, page):
    """Those with an interval, in percent or not; "lower by" turns the sign."""
    from figures.markdown import estimate

    text = pages.REGION.sub("", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    named = set(re.findall(r"(?<![\w.])-?\d[\d.]* \[-?\d[\d.]*, -?\d[\d.]*\]", text))
    known = set()
    for file in SENTENCES[page]:
        for found in estimates(json.loads((ROOT / file).read_text(encoding="utf-8"))):
            turned = {"value": -found["value"], "low": -found["high"], "high": -found["low"]}
            for each in (found, turned):
                known |= {estimate(each, 2), estimate(each, 0, 100), estimate(each, 0)}
    assert named
    assert named <= known


def test_the_audit_says_that_it_was_not_run_until_its_results_are_there(pages, tmp_path, monkeypatch):
    from figures import audit, sources

    regions = (audit.audit_run, audit.audit_verdicts, audit.audit_picture, audit.audit_figures)
    for module in (audit, sources):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "FILES", set())
    assert all(re.search(r"(has not been run|Not run|Not drawn) yet\.", region()) for region in regions)
    assert not sources.FILES
    (tmp_path / "docs/assets").mkdir(parents=True)
    (tmp_path / audit.AUDIT).write_text(json.dumps(audit_content()))
    (tmp_path / audit.PICTURE).write_bytes(b"")
    assert "tuned on 90 questions of pope, 1 scenes in this half and 1 in the other" in audit.audit_run()
    assert "| `dola` | ▼ damages | ▼ damages | yes |" in audit.audit_verdicts()
    assert "](assets/audit.png)" in audit.audit_picture()
    figures = audit.audit_figures()
    assert "| `pai` | alpha=0.5 | pope accuracy | +10.0 [+8.0, +12.0] | +9.0 [+7.0, +11.0] (random" in figures
    assert "(random heads &lt;i>) |" in figures
    assert figures.count("pope accuracy") == 6
    assert "chair_s" not in figures  # it decides nothing
    assert {audit.AUDIT} == sources.FILES
