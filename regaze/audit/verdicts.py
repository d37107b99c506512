"""The verdict on a method: the first rule of `RULES` that applies.

The rules are fixed: nothing in a plan changes them, but which benchmarks decide and whether damage is
checked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from regaze.eval.comparison.confounds import THRESHOLDS
from regaze.eval.report.tables import figure_label

NOT_RUN, DAMAGES, BETTER, UNSETTLED = "not run", "damages", "better", "better than plain"
EXPLAINED, NOTHING = "explained by a control", "no difference shown"
VERDICTS = (BETTER, UNSETTLED, EXPLAINED, NOTHING, DAMAGES, NOT_RUN)
#: Level of every test, after Holm's correction.
LEVEL = 0.05
#: Share of the questions of a benchmark that may be left out because answers failed.
FAILURES = 0.1
#: Share of a method's gain that a control has to have for it to explain the gain.
COVERED = 0.5
#: Share of the recall of the plain model's texts that a method may lose.
RECALL_LOSS = 0.1

#: {benchmark: what audit.json has about the method there}
Entries = Mapping[str, Mapping[str, Any]]
#: From the method to the reason why the rule applies; None where it does not.
Applies = Callable[[Mapping[str, Any]], str | None]


class Rule(NamedTuple):
    """A rule.

    Attributes:
        verdict: what it says of a method. when: in words, for tables. applies: see `Applies`.
    """

    verdict: str
    when: str
    applies: Applies


def judge(method: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict on a method and the reason.

    Args:
        method: what audit.json has about it, with corrected p-values; "error" where it could not run.
    """
    for rule in RULES:
        if (reason := rule.applies(method)) is not None:
            return rule.verdict, reason
    raise AssertionError("the last rule always applies")


def too_many(left_out: int, scored: int) -> bool:
    """Whether so many questions were left out that the others may be a choice."""
    return left_out > FAILURES * (scored + left_out)


def _did_not_run(method: Mapping[str, Any]) -> str | None:
    if method["error"]:
        return str(method["error"])
    for name, entry in _deciding(method).items():
        if too_many(entry["left_out"], entry["questions"]):
            return f"{entry['left_out']} questions of {name} were left out, because answers failed"
    if (method["damage"] or {}).get("error"):
        return f"the damage check could not run: {method['damage']['error']}"
    return None


def _damage_check(method: Mapping[str, Any]) -> str | None:
    found = method["damage"]
    if not found or not found["damaged"]:
        return None
    return f"{found['benchmark']} {figure_label(found['metric'])} {_change(found)} (p {found['p']:.2g})"


def _text_check(method: Mapping[str, Any]) -> str | None:
    found = (method["damage"] or {}).get("text")
    if not found or not found["damaged"]:
        return None
    return f"perplexity of plain text {found['plain']:.1f} to {found['perplexity']:.1f}"


def _is_worse(method: Mapping[str, Any]) -> str | None:
    worse = [
        f"{name} {figure_label(entry['metric'])} {_change(entry)}, worse than plain"
        f" (Holm p {entry['p_plain_holm']:.2g})"
        for name, entry in _deciding(method).items()
        if _significant(entry["p_plain_holm"]) and _gain(entry, entry["difference"]) < 0
    ]
    return "; ".join(worse) or None


def _is_better(method: Mapping[str, Any]) -> str | None:
    if method["damage"] is None:
        return None
    better = [
        f"{_gained(name, method['benchmarks'][name])}, {_against(method['benchmarks'][name])}"
        for name in better_on(method)
    ]
    return "; ".join(better) or None


def _is_explained(method: Mapping[str, Any]) -> str | None:
    explained = [
        f"{_gained(name, entry)}, but {why}"
        for name, entry in _deciding(method).items()
        if beats_plain(entry) and (why := _explanation(entry))
    ]
    return "; ".join(explained) or None


def _is_unsettled(method: Mapping[str, Any]) -> str | None:
    unsettled = [
        f"{_gained(name, entry)}, but {_what_is_open(entry)}"
        for name, entry in _deciding(method).items()
        if beats_plain(entry)
    ]
    return "; ".join(unsettled) or None


def _shows_nothing(method: Mapping[str, Any]) -> str | None:
    return "; ".join(
        f"{name} {figure_label(entry['metric'])} {_change(entry)}{_smallest(entry)}"
        for name, entry in _deciding(method).items()
    )


#: Tried from above; the last one always applies.
RULES: tuple[Rule, ...] = (
    Rule(
        NOT_RUN,
        "it raised, more than 10 % of the questions of a deciding benchmark or of the damage check had to be "
        "left out because answers failed, or the damage check could not run",
        _did_not_run,
    ),
    Rule(
        DAMAGES, "the damage check found a loss: interval below zero, p < 0.05 (not corrected)", _damage_check
    ),
    Rule(DAMAGES, "plain text has a perplexity higher by 5 %, interval of the loss above zero", _text_check),
    Rule(DAMAGES, "a deciding benchmark is worse than plain, Holm p < 0.05", _is_worse),
    Rule(
        BETTER,
        "a deciding benchmark is better than plain and than each control, Holm p < 0.05; one of these is the "
        "method's own, no confound explains it, and no damage was found",
        _is_better,
    ),
    Rule(
        EXPLAINED,
        "a deciding benchmark is better than plain, Holm p < 0.05, but a control that it was not shown to "
        "beat has at least half of the gain, or a confound explains it",
        _is_explained,
    ),
    Rule(
        UNSETTLED,
        "a deciding benchmark is better than plain, Holm p < 0.05, and no more is known: controls were not "
        "shown to do less, none of its own ran, or damage was not checked for",
        _is_unsettled,
    ),
    Rule(
        NOTHING,
        "none of these; the smallest difference that the questions could show is said",
        _shows_nothing,
    ),
)


def better_on(method: Mapping[str, Any]) -> list[str]:
    """The deciding benchmarks on which a method is better than plain and all controls."""
    return [
        name
        for name, entry in _deciding(method).items()
        if beats_all(entry) and entry["own_controls"] and not confounded(entry)
    ]


def beats_plain(entry: Mapping[str, Any]) -> bool:
    """Whether a benchmark is better than plain after correction."""
    return _significant(entry["p_plain_holm"]) and _gain(entry, entry["difference"]) > 0


def beats_all(entry: Mapping[str, Any]) -> bool:
    """Whether a benchmark is better than plain and than every control, after correction."""
    return _significant(entry["p_holm"]) and all(
        _gain(entry, each["difference"]) > 0 for each in (entry, *entry["controls"].values())
    )


def covering(entry: Mapping[str, Any]) -> str | None:
    """The control that gains most to plain, if that is at least `COVERED` of what the method gains."""
    gain = _gain(entry, entry["difference"])
    gains = {
        name: gain - _gain(entry, each["difference"])
        for name, each in entry["controls"].items()
        if each["difference"] is not None
    }
    most = max(gains, key=lambda name: gains[name], default=None)
    return most if most is not None and gains[most] >= COVERED * gain else None


def confounded(entry: Mapping[str, Any]) -> str:
    """How a confound explains a gain; "" where none does.

    What another control has the same of is no confound: a threshold between yes and no explains a yes-ratio
    that moved by more than 5 points unless one that was tuned, too, was a control (`yes-offset`), and length
    explains texts that are shorter by more than 10 % unless plain ones as short were (`stop-after`).
    Of texts also: repetition up by more than 2 points, or a recall lower by more than `RECALL_LOSS`.
    Answers that cannot be read are wrong, and explain no gain in yes/no answers.
    """
    given, controls = entry["confounds"], {name.split()[0] for name in entry["controls"]}
    if yes := given["yes_ratio"]:
        moved = yes[1] - yes[0]
        threshold = abs(moved) > THRESHOLDS["yes_ratio"].bound and "yes-offset" not in controls
        return f"the yes-ratio moves by {_points(moved)}, and no control moves it" if threshold else ""
    words, repeated, recall = given["length"], given["repetition"], given.get("recall")
    if words and words[1] < (1 - THRESHOLDS["words"].bound) * words[0] and "stop-after" not in controls:
        return f"texts are {1 - words[1] / words[0]:.0%} shorter, and no control is as short"
    if repeated and repeated[1] - repeated[0] > THRESHOLDS["repeated_4grams"].bound:
        return f"repetition rises by {_points(repeated[1] - repeated[0])}"
    if recall and recall[1] < (1 - RECALL_LOSS) * recall[0]:
        return f"recall falls by {_points(recall[1] - recall[0])}"
    return ""


def _explanation(entry: Mapping[str, Any]) -> str:
    """What explains a gain: a control that has much of it and was not shown to have less, or a confound."""
    if not beats_all(entry) and (name := covering(entry)) is not None:
        return f"{_change(entry['controls'][name], entry)} to {name}"
    return confounded(entry)


def _what_is_open(entry: Mapping[str, Any]) -> str:
    """Why a gain that nothing explains is not called better."""
    if not entry["own_controls"]:
        failed = entry["controls_failed"]
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        return f"no control of its own ran{f' ({reasons})' if reasons else ''}"
    if not beats_all(entry):
        return f"{_against(entry)} does not show more than this control"
    return "damage was not checked for"


def _deciding(method: Mapping[str, Any]) -> Entries:
    return {name: entry for name, entry in method["benchmarks"].items() if entry["decides"]}


def _best_control(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return entry["controls"][entry["best_control"]] if entry["best_control"] else None


def _gain(entry: Mapping[str, Any], difference: float | None) -> float:
    if difference is None:
        return 0.0
    return -difference if entry["lower_is_better"] else difference


def _significant(p: float | None) -> bool:
    return p is not None and p < LEVEL


def _change(compared: Mapping[str, Any], entry: Mapping[str, Any] | None = None) -> str:
    """A difference with its interval; `entry` is the benchmark of one to a control."""
    if compared["difference"] is None:
        return "is undefined"
    show = _points if _is_share(compared if entry is None else entry) else "{:+.2f}".format
    (low, high), shown = compared["difference_interval"], show(compared["difference"])
    return shown if low is None or high is None else f"{shown} [{show(low)}, {show(high)}]"


def _gained(name: str, entry: Mapping[str, Any]) -> str:
    return f"{name} {figure_label(entry['metric'])} {_change(entry)} to plain"


def _against(entry: Mapping[str, Any]) -> str:
    """The difference to the control that is hardest to beat, and the p-value of both differences."""
    control = _best_control(entry)
    shown = "" if control is None else f"{_change(control, entry)} to {entry['best_control']} "
    return f"{shown}(Holm p {entry['p_holm']:.2g})"


def _smallest(entry: Mapping[str, Any]) -> str:
    least = entry["detectable"]
    if least is None:
        return f" ({entry['changed']} of {entry['questions']} answers changed)"
    shown = f"{100 * least:.1f} points" if _is_share(entry) else f"{least:.2f}"
    return f" ({entry['questions']} questions could show {shown})"


def _is_share(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("share", True))


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
