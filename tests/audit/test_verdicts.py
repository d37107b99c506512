"""The rules of the verdicts, on figures made by hand."""

from __future__ import annotations

import pytest

from regaze.audit.figures import add_corrected
from regaze.audit.verdicts import RULES, VERDICTS, judge


def yes_no(yes_ratio, right_yes=(0.9, 0.95), right_no=(0.85, 0.9)):
    """Confounds of yes/no answers."""
    return {
        "length": [1.0, 1.0],
        "repetition": None,
        "yes_ratio": yes_ratio,
        "unreadable": [0.0, 0.0],
        "right_yes": right_yes,
        "right_no": right_no,
    }


def entry(**given):
    """A benchmark on which a method is five points better than plain and four than a sham."""
    return {
        "metric": "accuracy",
        "lower_is_better": False,
        "decides": True,
        "questions": 200,
        "failed": 0,
        "changed": 14,
        "difference": 0.05,
        "difference_interval": [0.02, 0.08],
        "detectable": 0.043,
        "controls": {
            "sham": {"score": 0.86, "difference": 0.04, "difference_interval": [0.01, 0.07], "p": 0.01}
        },
        "best_control": "sham",
        "p_plain": 0.001,
        "p_control": 0.01,
        "confounds": yes_no([0.50, 0.52]),
        **given,
    }


def method(benchmarks=None, **given):
    checked = {"benchmark": "mmstar", "metric": "accuracy", "error": None, "damaged": False}
    found = {"error": None, "damage": checked, "benchmarks": benchmarks or {"pope": entry()}, **given}
    add_corrected([found["benchmarks"]])
    return found


def loss(**given):
    found = {"difference": -0.12, "difference_interval": [-0.2, -0.04], "p": 0.004, "damaged": True}
    return {"benchmark": "mmstar", "metric": "accuracy", "error": None, **found, **given}


def test_better_than_plain_and_than_the_best_control():
    verdict, reason = judge(method())
    assert verdict == "better"
    assert reason == "pope accuracy +5.0 [+2.0, +8.0] to plain, +4.0 [+1.0, +7.0] to sham (Holm p 0.01)"


def test_a_gain_that_a_control_has_too_is_explained_by_it():
    sham = {"score": 0.9, "difference": 0.0, "difference_interval": [-0.02, 0.02], "p": 1.0}
    verdict, reason = judge(method({"pope": entry(controls={"sham": sham}, p_control=1.0)}))
    assert (verdict, reason) == (
        "explained by a control",
        "pope accuracy +5.0 [+2.0, +8.0] to plain, but +0.0 [-2.0, +2.0] to sham",
    )


def test_a_gain_that_moves_the_yes_ratio_is_explained_by_it():
    moved = yes_no([0.56, 0.49], right_yes=[0.97, 0.94], right_no=[0.85, 0.98])
    verdict, reason = judge(method({"pope": entry(confounds=moved)}))
    assert verdict == "explained by a control"
    assert reason.endswith("but the yes-ratio moves by -7.0, and what is rightly yes is found by -3.0")


def test_a_yes_ratio_that_moves_without_a_loss_explains_nothing():
    moved = yes_no([0.56, 0.49], right_yes=[0.97, 0.97], right_no=[0.85, 0.99])
    assert judge(method({"pope": entry(confounds=moved)}))[0] == "better"


@pytest.mark.parametrize(
    ("control", "verdict"), [("sham", "explained by a control"), ("stop-after tokens=20", "better")]
)
def test_shorter_texts_are_better_only_against_texts_as_short(control, verdict):
    shorter = {"length": [50.0, 40.0], "repetition": [0.01, 0.01], "yes_ratio": None, "unreadable": None}
    against = {"score": 0.4, "difference": -0.1, "difference_interval": [-0.2, -0.05], "p": 0.01}
    fewer = entry(
        metric="CHAIR_s",
        lower_is_better=True,
        difference=-0.2,
        difference_interval=[-0.3, -0.1],
        confounds=shorter,
        controls={control: against},
        best_control=control,
    )
    assert judge(method({"captions": fewer}))[0] == verdict


def test_a_method_without_controls_has_to_beat_the_plain_model():
    assert judge(method({"pope": entry(controls={}, best_control=None, p_control=None)}))[0] == "better"


def test_no_difference_says_what_the_questions_could_show():
    small = entry(difference=0.01, difference_interval=[-0.01, 0.03], p_plain=0.4, detectable=0.0286)
    verdict, reason = judge(method({"pope": small}))
    assert (verdict, reason) == (
        "no difference shown",
        "pope accuracy +1.0 [-1.0, +3.0] (200 questions could show 2.9 points)",
    )


def test_figures_that_are_no_shares_are_said_as_they_are():
    sham = {"score": 84.0, "difference": 4.25, "difference_interval": [1.0, 7.5], "p": 0.01}
    percent = entry(
        share=False, difference=5.5, difference_interval=[2.0, 9.0], detectable=4.3, controls={"sham": sham}
    )
    reason = "beaf accuracy +5.50 [+2.00, +9.00] to plain, +4.25 [+1.00, +7.50] to sham (Holm p 0.01)"
    assert judge(method({"beaf": percent})) == ("better", reason)
    nothing = judge(method({"beaf": {**percent, "p_plain": 0.4}}))
    assert nothing == (
        "no difference shown",
        "beaf accuracy +5.50 [+2.00, +9.00] (200 questions could show 4.30)",
    )
    lost = loss(metric="logprob", share=False, difference=-0.25, difference_interval=[-0.5, -0.125])
    assert judge(method(damage=lost))[1] == "mmstar logprob -0.25 [-0.50, -0.12] (p 0.004)"


def test_no_gain_is_better_beside_damage():
    assert judge(method(damage=loss())) == ("damages", "mmstar accuracy -12.0 [-20.0, -4.0] (p 0.004)")


@pytest.mark.parametrize(("damaged", "verdict"), [(True, "damages"), (False, "better")])
def test_a_loss_of_plain_text_is_damage(damaged, verdict):
    text = {"perplexity": 21.34, "plain": 18.0, "damaged": damaged}
    found = judge(method(damage={**loss(damaged=False), "text": text}))
    assert found[0] == verdict
    assert damaged == (found[1] == "perplexity of plain text 18.0 to 21.3")


def test_no_gain_is_better_where_damage_was_not_checked_for():
    verdict, reason = judge(method(damage=None))
    assert (verdict, reason) == ("no difference shown", "pope: better, but damage was not checked for")


def test_a_check_that_could_not_run_is_no_verdict():
    verdict, reason = judge(method(damage={**loss(), "error": "no likelihoods", "damaged": None}))
    assert (verdict, reason) == ("not run", "the damage check could not run: no likelihoods")


def test_a_deciding_benchmark_that_is_worse_is_damage():
    worse = entry(difference=-0.05, difference_interval=[-0.08, -0.02])
    verdict, reason = judge(method({"pope": worse, "captions": entry()}))
    assert verdict == "damages"
    assert reason == "pope accuracy -5.0 [-8.0, -2.0], worse than plain (Holm p 0.002)"


def test_a_benchmark_that_does_not_decide_changes_no_verdict():
    only = entry(difference=0.0, difference_interval=[None, None], p_plain=1.0, detectable=None, changed=0)
    verdict, reason = judge(method({"pope": only, "relations": entry(decides=False)}))
    assert (verdict, reason) == ("no difference shown", "pope accuracy +0.0 (0 of 200 answers changed)")


def test_a_method_that_raises_or_fails_was_not_run():
    assert judge(method(error="no such heads")) == ("not run", "no such heads")
    assert judge(method({"pope": entry(questions=170, failed=30)})) == (
        "not run",
        "30 questions of pope failed",
    )
    assert judge(method({"pope": entry(questions=180, failed=20)}))[0] == "better"


def test_the_correction_is_over_all_methods_and_all_benchmarks_that_decide():
    """Holm of the larger p of each pair: 0.01, 0.02, 0.03 of three, of which 0.03 = 3 x 0.01 and so on."""
    first = {"pope": entry(p_plain=0.01, p_control=0.002), "captions": entry(p_plain=0.004, p_control=0.02)}
    second = {"pope": entry(p_plain=0.03, p_control=0.03), "other": entry(decides=False)}
    add_corrected([first, second])
    assert first["pope"]["p_holm"] == pytest.approx(0.03)
    assert first["captions"]["p_holm"] == pytest.approx(0.04)
    assert second["pope"]["p_holm"] == pytest.approx(0.04)
    assert first["pope"]["p_control_holm"] == pytest.approx(0.006)
    assert first["captions"]["p_plain_holm"] == pytest.approx(0.012)
    assert second["other"]["p_holm"] == pytest.approx(0.01)


def test_every_verdict_has_a_rule_and_the_last_rule_always_applies():
    assert {rule.verdict for rule in RULES} == set(VERDICTS)
    assert RULES[-1].applies(method()) is not None
