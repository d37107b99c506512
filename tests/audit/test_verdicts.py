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
        "share": True,
        "questions": 200,
        "left_out": 0,
        "changed": 14,
        "difference": 0.05,
        "difference_interval": [0.02, 0.08],
        "controls": {
            "sham": {"score": 0.86, "difference": 0.04, "difference_interval": [0.01, 0.07], "p": 0.01}
        },
        "own_controls": ["sham"],
        "controls_failed": {},
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


def test_a_gain_that_no_control_has_but_that_is_not_told_from_one_is_explained_by_none():
    """Four of five points more than a control with one point: its p 0.08 after correction shows nothing."""
    sham = {"score": 0.86, "difference": 0.04, "difference_interval": [-0.005, 0.07], "p": 0.08}
    verdict, reason = judge(method({"pope": entry(controls={"sham": sham}, p_control=0.08)}))
    assert (verdict, reason) == (
        "better than plain",
        "pope accuracy +5.0 [+2.0, +8.0] to plain, but +4.0 [-0.5, +7.0] to sham (Holm p 0.08) does not show "
        "more than this control",
    )


@pytest.mark.parametrize(
    ("to_control", "verdict"), [(0.02, "explained by a control"), (0.03, "better than plain")]
)
def test_a_control_explains_a_gain_of_which_it_has_half(to_control, verdict):
    """Of five points, three and two."""
    sham = {"score": 0.87, "difference": to_control, "difference_interval": [-0.01, 0.06], "p": 0.3}
    assert judge(method({"pope": entry(controls={"sham": sham}, p_control=0.3)}))[0] == verdict


def test_any_control_that_has_the_gain_explains_it_not_the_hardest_alone():
    few = {"score": None, "difference": 0.05, "difference_interval": [-0.1, 0.2], "p": 0.9}
    most = {"score": 0.9, "difference": 0.01, "difference_interval": [-0.01, 0.03], "p": 0.4}
    found = entry(controls={"few": few, "most": most}, best_control="few", p_control=0.9)
    assert judge(method({"pope": found}))[1].endswith("but +1.0 [-1.0, +3.0] to most")


def test_a_yes_ratio_that_moves_explains_a_gain_unless_a_tuned_threshold_was_a_control():
    moved = yes_no([0.56, 0.49], right_yes=[0.97, 0.94], right_no=[0.85, 0.98])
    verdict, reason = judge(method({"pope": entry(confounds=moved)}))
    assert verdict == "explained by a control"
    assert reason.endswith("but the yes-ratio moves by -7.0, and no control moves it")
    against = entry()["controls"]["sham"]
    beside = {"sham": against, "yes-offset offset=-1.0": against}
    assert judge(method({"pope": entry(confounds=moved, controls=beside)}))[0] == "better"


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


def texts(**given):
    """Captions with half as many sentences with an absent object, of the same length."""
    confounds = {"length": [50.0, 50.0], "repetition": [0.01, 0.02], "yes_ratio": None, "recall": [0.6, 0.58]}
    against = {"score": 0.4, "difference": -0.1, "difference_interval": [-0.2, -0.05], "p": 0.01}
    fewer = {"difference": -0.2, "difference_interval": [-0.3, -0.1], "controls": {"sham": against}}
    return entry(metric="chair_s", lower_is_better=True, **fewer, confounds={**confounds, **given})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, None),
        ({"recall": [0.6, 0.5]}, "recall falls by -10.0"),
        ({"repetition": [0.01, 0.04]}, "repetition rises by +3.0"),
    ],
)
def test_texts_that_say_less_or_the_same_again_are_not_better(given, why):
    verdict, reason = judge(method({"captions": texts(**given)}))
    assert verdict == ("explained by a control" if why else "better")
    assert why is None or reason.endswith(f"but {why}")


def test_without_a_control_of_its_own_that_ran_no_method_is_better():
    failed = {"uniform-columns of pai": "no such layers"}
    verdict, reason = judge(method({"pope": entry(own_controls=[], controls_failed=failed)}))
    assert verdict == "better than plain"
    assert reason.endswith("but no control of its own ran (uniform-columns of pai: no such layers)")
    alone = entry(own_controls=[], controls={}, best_control=None, p_control=None)
    assert judge(method({"pope": alone}))[1].endswith("to plain, but no control of its own ran")


def test_no_difference_says_what_the_questions_could_show():
    small = entry(difference=0.01, difference_interval=[-0.01, 0.03], p_plain=0.4)
    verdict, reason = judge(method({"pope": small}))
    assert (verdict, reason) == (
        "no difference shown",
        "pope accuracy +1.0 [-1.0, +3.0] (200 questions could show 3.0 points)",
    )


def test_figures_that_are_no_shares_are_said_as_they_are():
    sham = {"score": 84.0, "difference": 4.25, "difference_interval": [1.0, 7.5], "p": 0.01}
    percent = entry(share=False, difference=5.5, difference_interval=[2.0, 9.0], controls={"sham": sham})
    reason = "beaf accuracy +5.50 [+2.00, +9.00] to plain, +4.25 [+1.00, +7.50] to sham (Holm p 0.01)"
    assert judge(method({"beaf": percent})) == ("better", reason)
    nothing = judge(method({"beaf": {**percent, "p_plain": 0.4}}))
    assert nothing == (
        "no difference shown",
        "beaf accuracy +5.50 [+2.00, +9.00] (200 questions could show 5.00)",
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
    assert verdict == "better than plain"
    assert reason == "pope accuracy +5.0 [+2.0, +8.0] to plain, but damage was not checked for"


def test_a_check_that_could_not_run_is_no_verdict():
    verdict, reason = judge(method(damage={**loss(), "error": "no likelihoods", "damaged": None}))
    assert (verdict, reason) == ("not run", "the damage check could not run: no likelihoods")


def test_a_deciding_benchmark_that_is_worse_is_damage():
    worse = entry(difference=-0.05, difference_interval=[-0.08, -0.02])
    verdict, reason = judge(method({"pope": worse, "captions": entry()}))
    assert verdict == "damages"
    assert reason == "pope accuracy -5.0 [-8.0, -2.0], worse than plain (Holm p 0.002)"


def test_a_benchmark_that_does_not_decide_changes_no_verdict():
    only = entry(difference=0.0, difference_interval=[None, None], p_plain=1.0, changed=0)
    verdict, reason = judge(method({"pope": only, "relations": entry(decides=False)}))
    assert (verdict, reason) == ("no difference shown", "pope accuracy +0.0 (0 of 200 answers changed)")


def test_a_method_that_raises_or_fails_was_not_run():
    assert judge(method(error="no such heads")) == ("not run", "no such heads")
    assert judge(method({"pope": entry(questions=170, left_out=30)})) == (
        "not run",
        "30 questions of pope were left out, because answers failed",
    )
    assert judge(method({"pope": entry(questions=180, left_out=20)}))[0] == "better"


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


def test_what_questions_could_show_depends_on_the_number_of_tests():
    """1.5 points of standard error: x (1.96 + 0.84) alone; of 14 tests x (2.91 + 0.84), and 10 answers."""
    alone, many = entry(), [{"pope": entry()} for _ in range(14)]
    add_corrected([{"pope": alone}])
    assert alone["detectable"] == pytest.approx(0.03 / 1.96 * 2.8016, rel=1e-3)
    add_corrected(many)
    assert many[0]["pope"]["detectable"] == pytest.approx(0.0574, abs=1e-4)
    exact = [{"pope": entry(difference_interval=[0.0, 0.0])} for _ in range(14)]
    add_corrected(exact)
    assert exact[0]["pope"]["detectable"] == 10 / 200


def test_every_verdict_has_a_rule_and_the_last_rule_always_applies():
    assert {rule.verdict for rule in RULES} == set(VERDICTS)
    assert RULES[-1].applies(method()) is not None
