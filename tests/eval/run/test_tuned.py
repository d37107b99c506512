"""Runs that tune first: what is chosen on one part of the images, and reported of the other."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import pytest
from standins import StandIn, lines, write_pope

from regaze.errors import BadParameterError, InputError
from regaze.eval import EvalConfig, EvalTask, Tuning, evaluate
from regaze.eval.run import results as results_file
from regaze.eval.run.requests import ImageHashes
from regaze.eval.tuning.division import divide

ROWS = [(image, label) for image in "abcdefgh" for label in ("yes", "no")]


@dataclass(frozen=True)
class Knob:
    """A method under which the stand-in below is right on other images."""

    level: int = 1
    name: str = "knob"

    def to_dict(self):
        return {"method": "knob", **asdict(self)}


class Knobbed(StandIn):
    """Says yes; under a method no, where that is right, about the images of its level.

    Args:
        images: {level: letters of the images}.
    """

    def __init__(self, images, **more):
        super().__init__(**more)
        self.right = images

    def using(self, *interventions):
        if any(each.level == 99 for each in interventions):
            raise BadParameterError("level 99 does not exist")
        return super().using(*interventions)

    def ask(self, images, questions, **kwargs):
        answers = super().ask(images, questions, **kwargs)
        if not self.active:
            return answers
        level = self.active[0].level
        odd = [int(question[1:].split("?")[0]) % 2 for question in questions]  # their label is no
        pairs = zip(questions, odd, strict=True)
        return ["No" if is_no and question[0] in self.right[level] else "Yes" for question, is_no in pairs]


@pytest.fixture
def task(tmp_path):
    """16 questions on eight images."""
    return EvalTask(write_pope(tmp_path, ROWS), {"max_new_tokens": 3})


@pytest.fixture
def parts(task):
    """Letters of the images that are tuned on, and of the others."""
    division = divide([task.benchmark], identify=ImageHashes().digest)
    tested = {item.image.stem for item in division.tested[0].items}
    return sorted({item.image.stem for item in division.tuning.items}), sorted(tested)


TUNING = Tuning({"knob": {"level": [1, 2, 4]}})


@pytest.fixture
def right(parts):
    """Level 2 is the best on the images that are tuned on, level 4 on the others."""
    tuned, tested = parts
    return {0: "", 1: "", 2: [*tuned, tested[0]], 4: [tuned[0], *tested], 7: "abcdefgh", 99: ""}


def run(gaze, task, folder, methods=None, tuning=TUNING, **more):
    given = {"knob": Knob()} if methods is None else methods
    return evaluate(gaze, [task], given, folder, model_name="m", tuning=tuning, **more)


def test_what_is_best_on_one_part_is_reported_of_the_other(task, parts, right, tmp_path):
    gaze = Knobbed(right)
    record = run(gaze, task, tmp_path / "out", {"knob": Knob(), "fixed": Knob(7)})
    tuning = record["tuning"]
    knob = tuning["methods"]["knob"]
    assert knob["chosen"] == {"level": 2}
    assert knob["grid"] == {"level": [1, 2, 4]}
    assert [trial["label"] for trial in knob["trials"]] == ["level=1", "level=2", "level=4"]
    values = [trial["figures"]["accuracy"]["value"] for trial in knob["trials"]]
    assert values == pytest.approx([0.5, 1.0, 0.5 + 1 / 8])
    assert {"value", "low", "high"} <= knob["trials"][2]["figures"]["accuracy"].keys()
    assert tuning["plain"]["figures"]["accuracy"]["value"] == 0.5
    assert list(tuning["methods"]) == ["knob"]  # the other had nothing to choose
    assert [tuning[key] for key in ("questions", "images", "left_out", "not_used")] == [8, 4, 0, 0]

    asked = record["benchmarks"]["pope"]
    tested = asked["methods"]["knob"]["figures"]["random"]
    assert [tested["questions"], tested["images"]] == [8, 4]
    assert tested["official"]["edited"]["accuracy"]["value"] == pytest.approx(0.5 + 1 / 8)
    assert asked["methods"]["fixed"]["figures"]["random"]["official"]["edited"]["accuracy"]["value"] == 1.0
    assert record["methods"]["knob"] == {"method": "knob", "level": 2, "name": "knob"}
    # Holm counts methods, not trials.
    difference = tested["official"]["difference"]
    assert difference["holm_p"] == pytest.approx(min(1, difference["permutation_p"]))
    assert results_file.read(tmp_path / "out") == record

    rows, tuned = (lines(tmp_path / "out" / name) for name in ("answers.jsonl", "tuning.jsonl"))
    assert [{row["image"][0] for row in each} for each in (tuned, rows)] == [set(parts[0]), set(parts[1])]
    assert {row["condition"] for row in tuned} == {"plain", "knob level=1", "knob level=2", "knob level=4"}
    assert {row["condition"] for row in rows} == {"plain", "knob", "fixed"}
    with_method = [prompt for prompt in gaze.prompts if prompt[0] in parts[1]]
    assert len(with_method) == 3 * (8 + 1)  # the trials that were not chosen are never asked there


def test_a_tuned_run_goes_on_where_it_was_stopped(task, right, tmp_path):
    config = EvalConfig(batch_size=2)
    whole = run(Knobbed(right), task, tmp_path / "whole", config=config)
    total, stops, folder = 0, 0, tmp_path / "out"
    while True:
        gaze = Knobbed(right, stops_after=5 + 2 * stops)
        try:
            resumed = run(gaze, task, folder, config=config)
        except KeyboardInterrupt:
            stops += 1
            assert results_file.read(folder)["complete"] is False
        else:
            break
        finally:
            total += len(gaze.prompts)
    assert stops > 3  # while it tuned, and after
    for name in ("answers.jsonl", "tuning.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for part in ("tuning", "methods"):
        assert resumed[part] == whole[part]
    assert [each.name for each in folder.glob("results*")] == ["results.json"]
    stored = [json.loads(line)["answers"] for line in (folder / "journal.0.jsonl").read_text().splitlines()]
    assert sum(map(len, stored)) == 4 * 8 + 2 * 8
    again = Knobbed(right)
    assert run(again, task, folder)["tuning"] == whole["tuning"]
    assert again.prompts == []


def test_another_grid_is_another_configuration_with_the_same_answers(task, right, tmp_path):
    run(Knobbed(right), task, tmp_path / "out")
    gaze = Knobbed(right)
    record = run(gaze, task, tmp_path / "out", tuning=Tuning({"knob": {"level": [1, 4]}}))
    assert record["tuning"]["methods"]["knob"]["chosen"] == {"level": 4}
    assert len(gaze.prompts) == 8 + 1
    for name in ("results.1.json", "tuning.1.jsonl"):
        assert (tmp_path / "out" / name).exists()


def test_trials_that_cannot_run_are_named_and_not_chosen(task, right, tmp_path):
    record = run(Knobbed(right), task, tmp_path / "out", tuning=Tuning({"knob": {"level": [99, 4]}}))
    knob = record["tuning"]["methods"]["knob"]
    assert knob["trials"][0]["error"] == "level 99 does not exist"
    assert knob["trials"][0]["figures"] is None
    assert knob["chosen"] == {"level": 4}
    for controls in (False, True):
        methods = {"knob": Knob(), "fixed": Knob(7)}
        tuning = Tuning({"knob": {"level": [99]}})
        record = run(Knobbed(right), task, tmp_path / "none", methods, tuning)
        assert record["tuning"]["methods"]["knob"]["chosen"] is None
        asked = record["benchmarks"]["pope"]["methods"]
        assert asked["knob"]["error"] == "no trial can be chosen: level 99 does not exist"
        assert asked["fixed"]["error"] is None, controls


def test_ties_and_the_direction_and_the_seed(task, right, tmp_path):
    tied = Tuning({"knob": {"level": [1, 0]}}, criterion="regaze.unreadable")
    record = run(Knobbed(right), task, tmp_path / "out", tuning=tied)
    assert record["tuning"]["criterion"]["lower_is_better"] is True
    assert record["tuning"]["methods"]["knob"]["chosen"] == {"level": 1}
    other = run(Knobbed(right), task, tmp_path / "seed", tuning=Tuning(tied.grids, seed=1))
    questions = [each["tuning"]["benchmark"]["questions_sha256"] for each in (record, other)]
    assert questions[0] != questions[1]


def test_what_does_not_fit_is_refused_before_anything_is_asked(task, right, tmp_path):
    for tuning, message in [
        (Tuning({"gift": {"level": [1]}}), "'gift' has a grid of parameters"),
        (Tuning({"knob": {"level": [1]}}, split="popular"), "pope has no split 'popular' to tune on"),
        (Tuning({"knob": {"level": [1]}}, split="random"), "no questions but those of split 'random'"),
        (Tuning({"knob": {"level": [1]}}, criterion="f2"), "criterion f2: pope has the figures accuracy"),
    ]:
        gaze = Knobbed(right)
        with pytest.raises(InputError, match=message):
            run(gaze, task, tmp_path / "out", tuning=tuning)
        assert gaze.prompts == []
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("added", [True, False], ids=["added", "a task"])
def test_the_damage_check_leaves_out_what_was_tuned_on(task, parts, right, tmp_path, added):
    check = EvalTask(replace(task.benchmark, name="check", suffix=" ?"), {})
    tasks = [task] if added else [task, check]
    record = evaluate(
        *(Knobbed(right), tasks, {"knob": Knob()}, tmp_path / "out"),
        model_name="m",
        tuning=TUNING,
        damage_check=check,
    )
    assert (record["damage"]["benchmark"], record["damage"]["added"]) == ("check", added)
    assert record["damage"]["questions"] == 8
    rows = [row for row in lines(tmp_path / "out/answers.jsonl") if row["benchmark"] == "check"]
    assert {row["image"][0] for row in rows} == set(parts[1])
