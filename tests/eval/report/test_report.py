"""Costs, detectable differences, validated results, and reports with their plots."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from pydantic import ValidationError
from standins import Blind, StandIn, write_pope

from regaze.cli import console
from regaze.cli import tables as terminal
from regaze.errors import InputError
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.answer_fields import choose_answer_field
from regaze.eval.answer_files import read_answer_rows
from regaze.eval.benchmarks.amber.benchmark import Amber
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.benchmarks.mme.benchmark import Mme
from regaze.eval.comparison.conditions import non_share_figures
from regaze.eval.cost import Cost
from regaze.eval.export import export_answers
from regaze.eval.report import report, tables
from regaze.eval.run import results
from regaze.eval.stats import estimators


def test_costs_add_up_by_the_share_that_counts():
    one = Cost(4, 8, 2.0, 8, 400, 50.0).to_dict()
    total = Cost.total([(one, 1.0), (one, 0.5), ({**one, "peak_mib": None}, 1.0)])
    assert total == Cost(10, 20, 5.0, 20, 1000, 50.0)
    assert total.forwards_per_token == 1.0
    assert Cost().forwards_per_token is None


def test_the_detectable_difference_is_found_four_times_out_of_five():
    """With a true difference of that size, a z-test of the mean rejects in 80 % of draws."""
    generator = np.random.default_rng(0)
    n, spread = 200, 1.0
    half = 1.959964 * spread / math.sqrt(n)
    size = estimators.detectable(-half, half)
    assert size == pytest.approx(2.801585 * spread / math.sqrt(n), rel=1e-5)
    means = generator.normal(size, spread, (4000, n)).mean(1)
    assert (abs(means) > half).mean() == pytest.approx(0.80, abs=0.02)
    assert math.isnan(estimators.detectable(math.nan, math.nan))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A comparison of two methods, and where it lies."""
    folder = tmp_path_factory.mktemp("ran")
    rows = [(image, label) for image in "abcd" for label in ("yes", "yes", "yes")]
    rows += [(image, label) for image in "efgh" for label in ("yes", "no", "no")]
    pope = write_pope(folder, rows)
    methods = {"blind": Blind(), "half | blind": Blind(0.5)}
    record = evaluate(
        StandIn(), [EvalTask(pope, {})], methods, folder / "out", model_name="m", config=EvalConfig()
    )
    report.write_report(record, folder / "out")
    return record, folder / "out"


def test_the_report_names_everything_that_decides_a_figure(ran):
    record, folder = ran
    text = (folder / report.MARKDOWN).read_text()
    for part in (
        record["model"]["fingerprint"],
        "24 questions on 8 images (24 prompts that differ)",
        "Intervals: bootstrap by cluster; the 24 questions fall into 8 clusters",
        "Test: permutation by cluster, exact.",
        "| plain | 66.7 [",
        "yes-ratio -100.0 points",
        "Holm p",
        "detectable",
        "| random | harness | F1 |",
        "half \\| blind",
        "![Differences to the plain model](plots/pope-difference.svg)",
    ):
        assert part in text, part
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for line in lines:
        assert line.endswith(" |")


def test_the_report_says_when_no_questions_share_an_image(tmp_path):
    pope = write_pope(tmp_path, [("a", "yes"), ("b", "no"), ("c", "yes")])
    record = evaluate(
        StandIn(),
        [EvalTask(pope, {})],
        {"blind": Blind()},
        tmp_path / "out",
        model_name="m",
        config=EvalConfig(),
    )
    assert tables.statistics_note(record["benchmarks"]["pope"]) == (
        "Intervals: Wilson (differences: Newcombe) of accuracy, else bootstrap by cluster; no two of the 3 "
        "questions share an image, as far as is known. Test: McNemar, exact."
    )


def test_the_plain_model_alone_has_no_columns_of_comparisons(tmp_path):
    pope = write_pope(tmp_path, [("a", "yes")])
    record = evaluate(
        StandIn(), [EvalTask(pope, {})], {}, tmp_path / "out", model_name="m", config=EvalConfig()
    )
    report.write_report(record, tmp_path / "out")
    text = (tmp_path / "out" / report.MARKDOWN).read_text()
    assert "1 question on 1 image (" in text
    assert "| | accuracy | precision | recall | F1 | yes-ratio |\n" in text.replace("|  |", "| |")
    assert "in percent" in text
    assert not any(word in text for word in ("Holm", "etectable", "Confounds: what"))


def test_the_page_is_well_formed_and_needs_no_other_file(ran):
    _, folder = ran
    page = (folder / report.HTML).read_text()
    assert page.count("<svg") == 1
    body = re.search(r"<body>.*</body>", page, re.S)[0]
    ElementTree.fromstring(re.sub(r"<svg.*?</svg>", "", body, flags=re.S))  # every tag is closed
    assert "http" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    assert "half | blind" in page


def test_the_page_has_a_column_per_condition_and_folds_the_parameters(ran):
    _, folder = ran
    page = (folder / report.HTML).read_text()
    before, after = page.split("<details>", 1)
    assert "fingerprint" not in before
    assert "fingerprint" in after.split("</details>")[0]
    figures = re.search(
        r"<tr><th></th><th>plain</th><th>blind</th><th>half \| blind</th></tr>\n<tr>(.*?)</tr>", page
    )
    assert figures[1].startswith("<td>accuracy</td><td>66.7 [")
    assert page.count('<div class="wide"><table>') == page.count("<table>")


def test_a_split_called_like_its_benchmark_is_named_once():
    figures = {"plain": {"figures": {"captions": {"chair": {"plain": {}}}}}}
    assert tables.leading_title("captions", figures) == "captions, chair scorer"
    assert tables.leading_title("chair", figures) == "chair, captions, chair scorer"


def test_the_plot_shows_every_method(ran):
    _, folder = ran
    plot = (folder / "plots/pope-difference.svg").read_text()
    assert "half | blind" in plot
    before = plot
    report.write_report(results.read(folder), folder)
    drawn = (folder / "plots/pope-difference.svg").read_text()
    assert len(drawn) == pytest.approx(len(before), rel=0.01)


def test_results_are_checked_before_they_are_written(ran, tmp_path):
    record, _ = ran
    for damage in ({"bogus": 1}, {"seed": "0"}, {"methods": []}):
        with pytest.raises(ValidationError):
            results.write({**record, **damage}, tmp_path)
    assert not (tmp_path / results.RESULTS).exists()
    results.write(record, tmp_path)
    assert results.read(tmp_path) == record
    (tmp_path / results.RESULTS).write_text('{"schema": 1}')
    with pytest.raises(
        InputError, match=r"results\.json is no results file of format 2: format: Field required"
    ):
        results.read(tmp_path)
    assert results.read(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("figure", "value", "says"),
    [
        ("f1", 0.842, "84.2"),
        ("f1", 1.0, "100.0"),
        ("words", 0.9, "0.9"),
        ("words", 1500.25, "1500.2"),
        ("f1", None, "undefined"),
        ("f1", math.nan, "undefined"),
    ],
)
def test_shares_are_percent_and_numbers_are_not(figure, value, says):
    assert tables.format_number(figure, value, ["words"]) == says


def test_every_benchmark_says_which_figures_are_numbers():
    for task in (Pope.of_demo(1), Chair.of_demo(1), Amber.of_demo(1), Mme.of_demo(1)):
        for scorer in task.scorers():
            figures = set(scorer.metrics) - set(non_share_figures(task).get(scorer.name, ()))
            assert scorer.fractions is None or figures <= set(scorer.fractions)
    assert non_share_figures(Pope.of_demo(1)) == {}
    assert non_share_figures(Chair.of_demo(1)) == {"chair": ["length", "words"]}
    assert set(non_share_figures(Amber.of_demo(1))["official"]) == {"chair", "cover", "hal", "cog"}


class Hostile(StandIn):
    """Answers with what would act on a terminal, a page or a spreadsheet."""

    def ask(self, images, questions, **kwargs):
        super().ask(images, questions, **kwargs)
        return [HOSTILE if self.active else f"=1+1\r\nyes {HOSTILE}"] * len(questions)


HOSTILE = "[/bold] \x1b[31m\x9b\u202e <img src=//host/x> ![a](http://host) a | b\t\0"


def test_hostile_labels_and_answers_are_shown_and_read_back_everywhere(tmp_path, capsys):
    task = write_pope(tmp_path)
    methods = {HOSTILE: Blind()}
    record = evaluate(
        Hostile(), [EvalTask(task, {})], methods, tmp_path / "out", model_name=HOSTILE, config=EvalConfig()
    )
    report.write_report(record, tmp_path / "out")
    terminal.show(record)
    terminal.show_sections(terminal.comparison(record))
    console.echo(results.dumps(record))
    shown = capsys.readouterr().out
    source = (tmp_path / "out" / report.MARKDOWN).read_text()
    page = (tmp_path / "out" / report.HTML).read_text()
    for text in (shown, source, page):
        assert not set(text) & set("\x1b\x9b\u202e\0")
        assert "\\u202e" in text
    for text in ("<img", "](http", "http://"):
        assert text not in source
    assert "<img" not in page
    paths = [
        *export_answers(tmp_path / "out", record, "vlmevalkit"),
        *export_answers(tmp_path / "out", record, "lmms-eval"),
    ]
    for path in paths:
        rows = read_answer_rows(path)
        answers = [row.text(choose_answer_field(rows)) for row in rows]
        told = answers[0].replace("\\u001b", "\x1b").replace("\\u0000", "\0")
        assert told in (HOSTILE, f"=1+1\r\nyes {HOSTILE}")
        cells = re.split("[\t\n]", path.read_text())
        assert not [cell for cell in cells if re.match('"?[=+@-]', cell)]
