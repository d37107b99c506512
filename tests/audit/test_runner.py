"""Whole audits of a stand-in that knows the demo's scenes, and of the demo itself."""

from __future__ import annotations

import json
import re
import zlib

import pytest
from standins import StandIn

from regaze import demo
from regaze.audit import AuditPlan, audit, load_audit, read_plan
from regaze.audit.page import audit_page
from regaze.audit.runner import TESTED, TUNED
from regaze.demo.world import CATEGORIES
from regaze.errors import BadParameterError, InputError, UnknownParameterError
from regaze.eval.benchmarks.mmstar.demo import questions as choices
from regaze.eval.run.journal import read_batches

PLAN = {
    "models": {"seer": {"load": "seer", "data": "demo"}},
    "methods": {
        "gift": {"method": "gift", "grid": {"alpha": [1.0, 2.0]}},
        "vaf": {"method": "vaf", "grid": {"enhance": [1.5, 2.0]}},
        "sparc": {"method": "sparc", "grid": {"alpha": [1.1, 1.2]}},
    },
    "benchmarks": {"pope": {"options": {"splits": ["random"]}, "questions": 120}},
    "damage": {"options": {"likelihood": False}},
}
PRESENT = {scene.name: {thing.category for thing in scene.objects} for scene in demo.scenes()}
LETTERS = {(path.name, record["question"]): record["answer"] for path, record in choices(demo.scenes())}


class Seer(StandIn):
    """Says yes to one thing in three that is not there; what the method is decides how it does else.

    gift with alpha 2 sees everything, and with alpha 1 what the plain model sees; vaf sees everything, and so
    does its control; sparc sees everything, and has lost its letters.
    """

    def ask(self, images, questions, method=None, **options):
        super().ask(images, questions, **options)
        acting = self.active[0] if self.active else method
        return [
            self.answer(shown[0].name, asked, acting) for shown, asked in zip(images, questions, strict=True)
        ]

    def answer(self, scene, question, method):
        name = getattr(method, "name", "plain")
        asked = re.search(r"Is there an? (.*) in the image", question)
        if asked is None:
            letters = [
                letter for (image, text), letter in LETTERS.items() if image == scene and text in question
            ]
            return "?" if name == "sparc" else letters[0]
        if asked[1] in PRESENT[scene]:
            return "Yes"
        inner = getattr(method, "of", method)
        sees = inner is not None and (
            inner.name == "vaf" or name == "sparc" or (name == "gift" and method.alpha == 2.0)
        )
        doubtful = zlib.crc32(f"{scene}{asked[1]}".encode()) % 3 == 0
        return "Yes" if doubtful and not sees else "No"


def plan(**changes):
    return AuditPlan.model_validate({**PLAN, **changes})


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The audit, its folder, and what it asked."""
    folder, seer = tmp_path_factory.mktemp("audit"), Seer()
    said = []
    found = audit(plan(), folder, load=lambda model: seer, progress=False, announce=said.append)
    return found, folder, seer, said


def test_verdicts_follow_from_what_methods_and_controls_see(seen):
    methods = seen[0]["models"]["seer"]["methods"]
    assert {label: each["verdict"] for label, each in methods.items()} == {
        "gift": "better",
        "vaf": "explained by a control",
        "sparc": "damages",
    }
    assert methods["vaf"]["benchmarks"]["pope"]["best_control"] == "uniform-columns of vaf"
    assert methods["sparc"]["damage"]["damaged"]


def test_the_best_trial_of_the_tuned_half_is_tested(seen):
    gift = seen[0]["models"]["seer"]["methods"]["gift"]
    low, high = gift["trials"]
    assert (gift["chosen"], gift["method"]["alpha"]) == ({"alpha": 2.0}, 2.0)
    assert low["score"] == seen[0]["models"]["seer"]["tuned_on"]["plain"] < high["score"] == 1.0
    assert gift["benchmarks"]["pope"]["score"] == 1.0


def test_a_threshold_is_tuned_as_often_as_methods_and_is_a_control_of_all(seen):
    model = seen[0]["models"]["seer"]
    trials = model["tuned_on"]["yes_offset"]
    assert [(each["values"], each["score"]) for each in trials] == [
        ({"offset": offset}, model["tuned_on"]["plain"]) for offset in (-1.0, 1.0)
    ]
    for method in model["methods"].values():
        assert {"yes-offset", "prefer-yes", "near-tie"} <= {*method["benchmarks"]["pope"]["controls"]}
        assert method["benchmarks"]["pope"]["controls_failed"] == {}
    assert {*model["methods"]} == {*PLAN["methods"]}


def test_a_benchmark_that_does_not_decide_has_no_controls_and_keeps_no_method_from_a_verdict(tmp_path):
    class Counting(Seer):
        def answer(self, scene, question, method):
            if not question.startswith("How many") or any(text in question for _, text in LETTERS):
                return super().answer(scene, question, method)
            if getattr(method, "name", "") == "gift":
                raise BadParameterError("gift: cannot count")
            return "2"

    counts = {"options": {"splits": ["count"]}, "questions": 20, "decides": False}
    more = plan(benchmarks={**PLAN["benchmarks"], "scenes": counts})
    found = audit(more, tmp_path, load=lambda model: Counting(), progress=False)
    methods = found["models"]["seer"]["methods"]
    assert (methods["gift"]["verdict"], methods["gift"]["error"]) == ("better", None)
    assert [*methods["gift"]["benchmarks"]] == ["pope"]
    assert methods["vaf"]["benchmarks"]["scenes"]["controls"] == {}
    assert len(methods["vaf"]["benchmarks"]["pope"]["controls"]) == 4


def test_no_scene_is_in_both_halves_and_no_answer_of_one_is_in_the_other(seen):
    found, folder, _, _ = seen
    halves = found["models"]["seer"]["halves"]
    assert not {*halves[TUNED]} & {*halves[TESTED]}
    assert len(halves[TUNED]) == len(halves[TESTED]) == 60
    for half, label in ((TUNED, "gift alpha=2"), (TESTED, "gift")):
        rows = [
            json.loads(line) for line in (folder / "seer" / half / "answers.jsonl").read_text().splitlines()
        ]
        mine = {row["image"] for row in rows if row["condition"] == label and row["benchmark"] == "pope"}
        assert mine
        assert mine <= {*halves[half]}
        assert mine <= {*found["models"]["seer"]["scenes"][half]} <= {*halves[half]}


def test_controls_are_of_the_chosen_strength_and_differences_are_paired(seen):
    found, folder, _, _ = seen
    results = json.loads((folder / "seer" / TESTED / "results.json").read_text())
    assert results["controls"]["uniform-columns of gift"]["of"]["alpha"] == 2.0
    entry = found["models"]["seer"]["methods"]["gift"]["benchmarks"]["pope"]
    control = entry["controls"]["uniform-columns of gift"]
    assert control["difference"] == pytest.approx(entry["score"] - control["score"])
    assert entry["difference"] == pytest.approx(entry["score"] - entry["plain"])
    assert control["p"] <= entry["p_control_holm"] <= entry["p_holm"] < 0.05
    assert entry["questions"] >= 120
    assert entry["clusters"] == len({*found["models"]["seer"]["halves"][TESTED]} & {*_asked_scenes(folder)})


def _asked_scenes(folder):
    rows = [
        json.loads(line) for line in (folder / "seer" / TESTED / "answers.jsonl").read_text().splitlines()
    ]
    return [row["image"] for row in rows if row["benchmark"] == "pope"]


def test_the_same_audit_again_asks_nothing_and_finds_the_same(seen):
    found, folder, _, said = seen
    silent = Seer(stops_after=0)
    left = []
    again = audit(plan(), folder, load=lambda model: silent, progress=False, announce=left.append)
    assert silent.prompts == []
    assert left[0]["seer"] <= said[0]["seer"]
    assert again["models"] == found["models"]
    assert load_audit(folder) == again == load_audit(folder / "audit.json")


def test_what_was_found_of_other_models_stays_while_one_is_done_again(tmp_path):
    """Stopped when the first of two models is done, the other of which was there."""
    small = plan(benchmarks={"pope": {"questions": 12}}, damage=None)
    first = small.models["seer"].model_copy(update={"load": "new"})
    more = small.model_copy(update={"models": {"new": first, **small.models}})
    audit(small, tmp_path, load=lambda model: Seer(), progress=False)
    loaded = []

    def load(model):
        loaded.append(model.load)
        if loaded.count("seer") == 2:  # the first time to see how long it takes
            raise KeyboardInterrupt
        return Seer()

    with pytest.raises(KeyboardInterrupt):
        audit(more, tmp_path, load=load, progress=False)
    found = load_audit(tmp_path)
    assert [*found["models"]] == ["new", "seer"]
    assert (tmp_path / "audit.html").read_text() == audit_page(found)


def test_an_audit_that_was_stopped_continues(tmp_path, seen):
    with pytest.raises(KeyboardInterrupt):
        audit(plan(), tmp_path, load=lambda model: Seer(stops_after=900), progress=False)
    assert not (tmp_path / "audit.json").exists()
    stored = sum(
        len(batch.answers) for half in (TUNED, TESTED) for batch in read_batches(tmp_path / "seer" / half)
    )
    rest = Seer()
    found = audit(plan(), tmp_path, load=lambda model: rest, progress=False)
    assert stored > 500
    assert len(rest.prompts) < len(seen[2].prompts) - 500
    assert found["models"]["seer"]["methods"] == seen[0]["models"]["seer"]["methods"]


def test_progress_is_one_label_per_half_and_ends_at_its_total(tmp_path):
    calls = []
    small = plan(benchmarks={"pope": {"questions": 12}}, damage=None)
    audit(small, tmp_path, load=lambda model: Seer(), progress=lambda *call: calls.append(call))
    last = {label: (done, total) for label, done, total in calls if "timing" not in label}
    assert [*last] == ["seer tuned", "seer tested"]
    assert all(done == total for done, total in last.values())


def test_a_method_that_raises_is_not_run_and_the_others_are(tmp_path):
    class Refusing(Seer):
        def using(self, *interventions):
            if interventions[0].name == "vaf":
                raise BadParameterError("vaf: no such layers")
            return super().using(*interventions)

    small = plan(benchmarks={"pope": {"questions": 60}})
    methods = audit(small, tmp_path, load=lambda model: Refusing(), progress=False)["models"]["seer"][
        "methods"
    ]
    assert (methods["vaf"]["verdict"], methods["vaf"]["reason"]) == ("not run", "vaf: no such layers")
    assert methods["vaf"]["chosen"] is None
    assert methods["gift"]["verdict"] != "not run"


def test_trials_are_compared_on_the_questions_that_all_have_answers_to(tmp_path, seen):
    """With alpha 1 gift fails on four scenes, the only ones that it is wrong about with alpha 2."""
    *others, fourth, third, second, first = seen[0]["models"]["seer"]["halves"][TUNED]
    lost, wrong = {first, second, third, fourth}, {*others[-3:]}

    class Failing(Seer):
        def answer(self, scene, question, method):
            asked = re.search(r"Is there an? (.*) in the image", question)
            if getattr(method, "name", "") != "gift" or asked is None:
                return super().answer(scene, question, method)
            if method.alpha == 1.0 and scene in lost:
                raise ValueError("out of memory")
            is_right = scene not in (lost if method.alpha == 2.0 else wrong)
            return "Yes" if (asked[1] in PRESENT[scene]) == is_right else "No"

    small = plan(benchmarks={"pope": {**PLAN["benchmarks"]["pope"], "questions": 360}}, damage=None)
    found = audit(small, tmp_path, load=lambda model: Failing(), progress=False)
    gift = found["models"]["seer"]["methods"]["gift"]
    low, high = (trial["score"] for trial in gift["trials"])
    assert high == 1.0 > low
    assert gift["chosen"] == {"alpha": 2.0}


def test_a_folder_with_another_plan_is_refused(seen):
    more = plan(models={**PLAN["models"], "other": {"load": "seer", "data": "demo"}})
    assert more.extends(plan())
    with pytest.raises(InputError, match=r"holds the audit of another plan.*--output"):
        audit(plan(seed=1), seen[1], load=lambda model: Seer(), progress=False)


def test_what_is_wrong_is_raised_before_a_model_is_loaded(tmp_path):
    def load(model):
        raise AssertionError("loaded")

    wrong = plan(methods={"gift": {"method": "gift", "grid": {"strength": [1, 2]}}})
    with pytest.raises(UnknownParameterError, match="strength"):
        audit(wrong, tmp_path / "a", load=load)
    with pytest.raises(InputError, match="unknown benchmark"):
        audit(plan(benchmarks={"poppe": {}}), tmp_path / "b", load=load)


def test_a_smaller_plan_or_one_of_fewer_benchmarks_has_the_same_halves(tmp_path, seen):
    small = plan(benchmarks={"pope": {"questions": 6, "per_image": 1}}, damage=None)
    found = audit(small, tmp_path, load=lambda model: Seer(), progress=False)["models"]["seer"]
    assert found["halves"] == seen[0]["models"]["seer"]["halves"]
    assert len(found["scenes"][TUNED]) == len(found["scenes"][TESTED]) == 6


def test_the_words_of_the_questions_are_those_that_the_stand_in_reads():
    assert {category for categories in PRESENT.values() for category in categories} <= {*CATEGORIES}


@pytest.mark.slow
def test_the_quick_audit_of_the_demo(tmp_path):
    found = audit(read_plan("quick"), tmp_path, progress=False)
    demo_model = found["models"]["demo"]
    assert found["complete"]
    assert {*demo_model["methods"]} == {"pai", "dola", "sparc"}
    for method in demo_model["methods"].values():
        assert method["verdict"] != "not run"
        assert method["damage"]["benchmark"] == "mmstar"
        assert {*method["benchmarks"]} == {"pope", "captions"}
        assert method["cost"]["tokens_per_second"] > 0
