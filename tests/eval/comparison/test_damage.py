"""The damage check: which losses are damage, and where they are said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from standins import Blind, StandIn, write_pope

from regaze.cli import tables as terminal
from regaze.eval import EvalConfig, EvalTask, evaluate
from regaze.eval.benchmarks.mmstar.benchmark import Mmstar
from regaze.eval.comparison.conditions import AnswerSet, compare_conditions
from regaze.eval.comparison.damage import check_damage
from regaze.eval.report import report
from regaze.eval.report.markdown import to_markdown
from regaze.eval.run import results


def chosen(items, wrong):
    """The right options, but the next ones of the first `wrong` items."""
    answers = []
    for number, item in enumerate(items):
        options = item.reference.options
        right = "ABCD".index(item.label)
        answers.append(options[(right + (number < wrong)) % len(options)])
    return AnswerSet(tuple(answers))


def checked(losses, refused=None):
    """The damage of methods that lose so many of 60 questions; a benchmark beside it has the same methods."""
    bench = Mmstar.of_demo(limit=60)
    conditions = {"plain": chosen(bench.items, 10)}
    conditions |= {label: chosen(bench.items, 10 + lost) for label, lost in losses.items()}
    compared = compare_conditions(bench, conditions, refused or {}, 0)
    other = {"plain": {}, "methods": {label: {"flags": ["length -20%"]} for label in losses}}
    benchmarks = {"pope": other, "mmstar": compared}
    return check_damage(benchmarks, "mmstar", True), benchmarks


def test_a_loss_beyond_its_interval_is_damage_and_a_confound_elsewhere():
    damage, benchmarks = checked({"same": 0, "few": 4, "many": 12, "better": -6})
    assert {label: entry["damaged"] for label, entry in damage["methods"].items()} == {
        "same": False,
        "few": False,
        "many": True,
        "better": False,
    }
    many = damage["methods"]["many"]
    assert many["difference"]["value"] == pytest.approx(-12 / 60)
    assert many["value"]["value"] == pytest.approx(38 / 60)
    assert many["difference"]["high"] < 0
    assert many["p"] == pytest.approx(2 * 0.5**12)
    assert (damage["figure"], damage["scorer"], damage["questions"]) == ("accuracy", "regaze", 60)
    flags = {label: entry["flags"] for label, entry in benchmarks["pope"]["methods"].items()}
    assert flags["many"] == ["length -20%", "damage: mmstar -20.0 points"]
    assert flags["few"] == ["length -20%"]
    assert not any("damage" in flag for flag in benchmarks["mmstar"]["methods"]["many"]["flags"])


def test_an_interval_below_zero_is_no_damage_where_the_exact_test_disagrees():
    damage, _ = checked({"five": 5})
    five = damage["methods"]["five"]
    assert five["p"] == pytest.approx(0.0625)
    assert five["damaged"] is False


def test_a_method_that_cannot_be_checked_says_why():
    damage, _ = checked({"same": 0}, {"carve": "it has no likelihoods"})
    assert damage["methods"]["carve"] == {"error": "it has no likelihoods"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A comparison whose damage check is asked beside it, and where it lies."""
    folder = tmp_path_factory.mktemp("damage")
    pope = write_pope(folder, [(image, "no") for image in "abcdefgh"])
    task = EvalTask(replace(pope, items=tuple(replace(i, reference="yes", label="yes") for i in pope.items)))
    check = EvalTask(replace(task.benchmark, name="seeing"))
    asked = [EvalTask(pope, {}), check]

    def run(tasks, name, **more):
        return evaluate(
            *(StandIn(), tasks, {"blind": Blind(), "half": Blind(0.5)}, folder / name),
            model_name="m",
            config=EvalConfig(),
            damage_check=check,
            **more,
        )

    return run, asked, folder


def test_a_run_has_the_check_in_its_results_table_and_report(ran):
    run, (pope, _), folder = ran
    record = run([pope], "added", controls=True)
    assert results.read(folder / "added") == record
    assert record["damage"]["added"] is True
    assert record["damage"]["benchmark"] == "seeing"
    assert record["damage"]["plain"]["value"] == 1.0  # "Yes" to questions whose answer is yes
    assert record["damage"]["methods"]["blind"]["difference"]["value"] == -1.0
    assert record["damage"]["methods"]["blind"]["damaged"] is True
    entry = record["benchmarks"]["pope"]["methods"]["half"]
    assert "damage: seeing -100.0 points" in entry["flags"]
    assert entry["figures"]["random"]["official"]["difference"]["accuracy"]["value"] == 1.0
    assert record["benchmarks"]["seeing"]["controls"] == {}  # the check has none
    assert record["benchmarks"]["pope"]["controls"]
    table = to_markdown(terminal.comparison(record), folder)
    assert "## Damage check\n\n8 questions of seeing. Multiple-choice" in table
    assert "| blind | 0.0 [0.0, 32.4] | -100.0 [" in table
    assert "## seeing" not in table
    report.write_report(record, folder / "added")
    for name in (report.MARKDOWN, report.HTML):
        text = (folder / "added" / name).read_text()
        assert "8 questions of seeing. Multiple-choice" in text
        assert "damage: seeing -100.0 points" in text


def test_a_benchmark_that_is_asked_anyway_is_its_own_check(ran, tmp_path):
    run, asked, _ = ran
    record = run(asked, "asked")
    assert record["damage"]["added"] is False
    shown = to_markdown(terminal.comparison(record), tmp_path)
    assert "## seeing, random, official scorer" in shown


def test_a_check_that_cannot_be_asked_does_not_end_the_comparison(ran, tmp_path):
    _, (pope, _), _ = ran
    check = EvalTask(Mmstar.of_demo(limit=4))  # the stand-in has no likelihoods
    record = evaluate(StandIn(), [pope], {"blind": Blind()}, tmp_path, model_name="m", damage_check=check)
    assert results.read(tmp_path) == record
    assert record["complete"]
    assert list(record["benchmarks"]) == ["pope"]
    assert record["damage"]["error"].startswith("AttributeError: ")
    assert record["damage"]["methods"] == {}
    shown = to_markdown(terminal.comparison(record), tmp_path)
    assert "## Damage check\n\nmmstar could not be asked: AttributeError" in shown
    report.write_report(record, tmp_path)
    assert "mmstar could not be asked" in (tmp_path / report.MARKDOWN).read_text()
