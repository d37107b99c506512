"""Sweeps: every value of a parameter on the same questions, and the curves."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pytest
from PIL import Image
from standins import StandIn, write_pope

import regaze
from regaze import demo
from regaze.errors import UnknownParameterError
from regaze.eval import EvalTask, Pope, sweep
from regaze.eval.report import sweeps
from regaze.eval.report.report import write_report
from regaze.eval.run import results as results_file
from regaze.interventions import HeadKnockout

ROWS = [(image, label) for image in "abcdef" for label in ("yes", "no")]


@dataclass(frozen=True)
class Knob:
    """A method under which the stand-in says no about the first images."""

    level: int = 1
    mode: str = "short"

    def to_dict(self):
        return {"method": "knob", **asdict(self)}

    @property
    def is_identity(self):
        return self.level == 0


class Knobbed(StandIn):
    def ask(self, images, questions, **kwargs):
        answers = super().ask(images, questions, **kwargs)
        if not self.active:
            return answers
        [knob] = self.active
        no = "No" if knob.mode == "short" else "No there is none"
        return [no if question[0] in "abcdef"[: knob.level] else "Yes" for question in questions]


@pytest.fixture
def record(tmp_path):
    task = EvalTask(write_pope(tmp_path, ROWS), {})
    grid = {"level": [4, 0, 2], "mode": ["short", "long"]}
    return sweep(Knobbed(), [task], Knob(), grid, tmp_path / "out", model_name="m")


def test_every_value_is_a_point_beside_the_plain_model(record, tmp_path):
    swept = record["sweep"]
    assert swept["method"] == "knob"
    assert swept["grid"] == {"level": [4, 0, 2], "mode": ["short", "long"]}
    assert len(swept["points"]) == 6
    assert swept["points"]["level=4, mode=long"] == {"level": 4, "mode": "long"}
    assert swept["neutral"] == {label: {"pope": 0} for label in ("level=0, mode=short", "level=0, mode=long")}
    assert results_file.read(tmp_path / "out") == record
    head, plain, *points = sweeps.sweep_table(record, "pope")
    assert head == ["", "accuracy", "recall", "yes-ratio", "words", "p", "Holm p", "changed"]
    assert plain == ["plain", "50.0", "100.0", "100.0", "1.0", "", "", ""]
    by_label = {row[0]: row for row in points}
    assert by_label["level=0, mode=long"] == ["level=0, mode=long", *plain[1:5], "1", "1", "0"]
    assert by_label["level=4, mode=long"][1] == "50.0"
    assert by_label["level=4, mode=long"][4].startswith("3.0 [")  # 8 of 12 answers have four words
    assert by_label["level=4, mode=short"][4] == "1.0"
    assert sweeps.neutral_note(record).count("is neutral, and its answers are those of the plain model") == 2


def test_the_curves_are_drawn_in_ascending_order_with_their_intervals(record, tmp_path):
    write_report(record, tmp_path / "out")
    figure = sweeps.draw_sweep(record, "pope")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["accuracy (%)", "recall (%)", "yes-ratio (%)", "words"]
    recall = figure.axes[1]
    assert list(recall.lines[0].get_ydata()) == [100.0, 100.0]  # the plain model
    data = [list(zip(*curve.lines[0].get_data(), strict=True)) for curve in recall.containers]
    assert len(data) == 2
    for curve in data:
        assert np.array(curve) == pytest.approx(np.array([(0, 100.0), (2, 400 / 6), (4, 200 / 6)]))
    [legend] = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == ["plain", "mode=short", "mode=long"]
    edited = record["benchmarks"]["pope"]["methods"]["level=2, mode=short"]["figures"]["random"]["official"]
    bars = recall.containers[0].lines[2][0].get_segments()[1]
    sides = [100 * edited["edited"]["recall"][side] for side in ("low", "high")]
    assert np.asarray(bars)[:, 1] == pytest.approx(sides)
    for name in ("pope-sweep.svg", "pope-sweep.png"):
        assert (tmp_path / "out/plots" / name).stat().st_size > 5000
    assert Image.open(tmp_path / "out/plots/pope-sweep.png").width > 800
    assert "level, mode of knob" in (tmp_path / "out/report.md").read_text()


def test_a_neutral_point_that_changes_answers_is_called_a_fault(tmp_path):
    class Always(Knob):
        is_identity = True

    task = EvalTask(write_pope(tmp_path, ROWS), {})
    record = sweep(Knobbed(), [task], Always(), {"level": [3]}, tmp_path / "out", model_name="m")
    assert sweeps.neutral_note(record) == (
        "level=3 should change nothing, but changed 6 answers (pope): please report this."
    )


def test_a_value_that_cannot_run_is_a_line(tmp_path):
    class Refuses(Knobbed):
        def using(self, *interventions):
            if interventions[0].level == 9:
                raise ValueError("9 is too much")
            return super().using(*interventions)

    task = EvalTask(write_pope(tmp_path, ROWS), {})
    record = sweep(Refuses(), [task], Knob(), {"level": [9, 1]}, tmp_path / "out", model_name="m")
    table = sweeps.sweep_table(record, "pope")
    assert table[2] == ["level=9", "cannot run: ValueError: 9 is too much", *[""] * 6]
    line = sweeps.draw_sweep(record, "pope").axes[0].containers[0].lines[0]
    assert np.isnan(line.get_ydata()).tolist() == [False, True]


def test_a_grid_is_checked(tmp_path):
    task = EvalTask(write_pope(tmp_path, ROWS), {})
    with pytest.raises(UnknownParameterError, match="knob has no parameter 'alpha' to try"):
        sweep(Knobbed(), [task], Knob(), {"alpha": [1]}, tmp_path / "out", model_name="m")


@pytest.mark.skipif(not demo.MODEL_DIR.is_dir(), reason="the demo model is not in this checkout")
def test_the_neutral_value_has_the_figures_of_the_plain_model(tmp_path):
    gaze = regaze.wrap(*regaze.load("demo"))
    task = EvalTask(Pope.of_demo(12, ["adversarial"]), {"max_new_tokens": 3})
    grid = {"heads": [(), ((0, 0), (0, 3))]}
    record = sweep(gaze, [task], HeadKnockout(), grid, tmp_path / "out", model_name="demo")
    asked = record["benchmarks"]["pope"]
    neutral, blind = asked["methods"].values()
    scores, plain = (each["figures"]["adversarial"] for each in (neutral, asked["plain"]))
    for scorer in ("official", "harness", "regaze"):
        assert scores[scorer]["edited"] == plain[scorer]["plain"]
    assert neutral["length"] == asked["plain"]["length"]
    assert neutral["text"] == asked["plain"]["text"]
    assert list(record["sweep"]["neutral"].values()) == [{"pope": 0}]
    assert blind["answers_changed"] > 3
    axes = sweeps.draw_sweep(record, "pope").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["[]", "[[0, 0], [0, 3]]"]
