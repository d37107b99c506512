"""What is said about a run: confounds, what can be detected, checked results, reports with their plots."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from pydantic import ValidationError
from standins import Blind, StandIn, write_pope

from regaze.errors import InputError
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.benchmarks.amber.benchmark import Amber
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.mme.benchmark import Mme
from regaze.eval.comparison import confounds
from regaze.eval.comparison.conditions import drop_failed_clusters, non_share_figures
from regaze.eval.cost import Cost
from regaze.eval.report import report, tables
from regaze.eval.run import results
from regaze.eval.stats import estimators


def items(*labels: str) -> list[Item]:
    return [Item(str(n), "s", Path(f"{n}.png"), "?", label) for n, label in enumerate(labels)]


def test_texts_are_measured_by_hand():
    answers = ["Yes", "no", "a b c d a b c d", ""]
    measured = confounds.measure(items("yes", "no", "no", "no"), answers)
    assert measured == {
        "words": (1 + 1 + 8 + 0) / 4,
        "repeated_4grams": 1 / 5,  # abcd bcda cdab dabc abcd
        "empty": 1 / 4,
        "yes_ratio": 1 / 4,
        "unreadable": 2 / 4,
    }
    captions = confounds.measure(items("", ""), ["a dog", "a cat on a mat"])
    assert set(captions) == {"words", "repeated_4grams", "empty"}
    assert captions["words"] == 3.5


@pytest.mark.parametrize(
    ("name", "plain", "beyond", "within", "says"),
    [
        ("words", 10.0, 8.9, 9.1, "length -11%"),
        ("repeated_4grams", 0.01, 0.04, 0.02, "repetition +3.0 points"),
        ("yes_ratio", 0.5, 0.56, 0.54, "yes-ratio +6.0 points"),
        ("unreadable", 0.0, 0.02, 0.005, "unreadable +2.0 points"),
    ],
)
def test_a_change_of_the_texts_is_named_beyond_its_threshold(name, plain, beyond, within, says):
    assert confounds.flags({name: plain}, {name: beyond}, Cost(), Cost()) == [says]
    assert confounds.flags({name: plain}, {name: within}, Cost(), Cost()) == []
    assert confounds.flags({name: math.nan}, {name: beyond}, Cost(), Cost()) == []
    assert confounds.flags({}, {name: beyond}, Cost(), Cost()) == []


def test_more_computation_and_memory_are_named():
    plain, twice = Cost(tokens=10, rows=10, peak_mib=100.0), Cost(tokens=10, rows=20, peak_mib=130.0)
    assert confounds.flags({}, {}, plain, twice) == ["2.0 forwards per token", "memory +30%"]
    assert confounds.flags({}, {}, plain, Cost(tokens=10, rows=12, peak_mib=120.0)) == []


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


def test_whole_clusters_are_left_out(tmp_path):
    pope = write_pope(tmp_path)
    assert drop_failed_clusters(pope, set()) == (pope, [0, 1, 2, 3, 4])
    rest, kept = drop_failed_clusters(pope, {3})
    assert kept == [0, 1, 4]
    assert [item.key for item in rest.items] == ["random/1", "random/2", "random/5"]
    assert len(pope.items) == 5
    with pytest.raises(InputError, match="no question is left"):
        drop_failed_clusters(pope, {0, 2, 4})


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


def test_the_page_is_whole_and_needs_no_other_file(ran):
    _, folder = ran
    page = (folder / report.HTML).read_text()
    assert page.count("<svg") == 1
    body = re.search(r"<body>.*</body>", page, re.S)[0]
    ElementTree.fromstring(re.sub(r"<svg.*?</svg>", "", body, flags=re.S))  # every tag is closed
    assert "http" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    assert "half | blind" in page


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
