"""The verdict on a method: the first rule of `RULES` that applies.

The rules are fixed: nothing in a plan changes them, but which benchmarks decide and whether damage is
checked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from regaze.eval.benchmarks.common.yes_no import LABELS
from regaze.eval.comparison.confounds import THRESHOLDS
from regaze.eval.report.tables import figure_label

NOT_RUN, DAMAGES, BETTER = "not run", "damages", "better"
EXPLAINED, NOTHING = "explained by a control", "no difference shown"
VERDICTS = (BETTER, EXPLAINED, NOTHING, DAMAGES, NOT_RUN)
#: Level of every test, after Holm's correction.
LEVEL = 0.05
#: Share of the questions of a benchmark that decides which may fail.
FAILURES = 0.1

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


def _did_not_run(method: Mapping[str, Any]) -> str | None:
    if method["error"]:
        return str(method["error"])
    for name, entry in _deciding(method).items():
        failed = entry["failed"]
        if failed > FAILURES * (entry["questions"] + failed):
            return f"{failed} questions of {name} failed"
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
        f"{name} {figure_label(entry['metric'])} {_change(entry)} to plain{_to_control(entry)} "
        f"(Holm p {entry['p_holm']:.2g})"
        for name, entry in _deciding(method).items()
        if beats_all(entry) and not confounded(entry)
    ]
    return "; ".join(better) or None


def _is_explained(method: Mapping[str, Any]) -> str | None:
    explained = []
    for name, entry in _deciding(method).items():
        if not beats_plain(entry):
            continue
        if not beats_all(entry) and (control := _best_control(entry)) is not None:
            why = f"{_change(control, entry)} to {entry['best_control']}"
        else:
            why = confounded(entry)
        if why:
            explained.append(f"{name} {figure_label(entry['metric'])} {_change(entry)} to plain, but {why}")
    return "; ".join(explained) or None


def _shows_nothing(method: Mapping[str, Any]) -> str | None:
    if method["damage"] is None and (
        found := [name for name, each in _deciding(method).items() if beats_all(each)]
    ):
        return f"{', '.join(found)}: better, but damage was not checked for"
    return "; ".join(
        f"{name} {figure_label(entry['metric'])} {_change(entry)}{_smallest(entry)}"
        for name, entry in _deciding(method).items()
    )


#: Tried from above; the last one always applies.
RULES: tuple[Rule, ...] = (
    Rule(
        NOT_RUN,
        "it raised, more than 10 % of its questions about a deciding benchmark failed, or the damage check "
        "could not run",
        _did_not_run,
    ),
    Rule(DAMAGES, "the damage check found a loss: interval below zero, p < 0.05", _damage_check),
    Rule(DAMAGES, "plain text has a perplexity higher by 5 %, interval of the loss above zero", _text_check),
    Rule(DAMAGES, "a deciding benchmark is worse than plain, Holm p < 0.05", _is_worse),
    Rule(
        BETTER,
        "a deciding benchmark is better than plain and than the best control, Holm p < 0.05, no confound "
        "explains it, and no damage was found",
        _is_better,
    ),
    Rule(
        EXPLAINED,
        "a deciding benchmark is better than plain, Holm p < 0.05, but not than the best control, or a "
        "confound explains it",
        _is_explained,
    ),
    Rule(
        NOTHING,
        "none of these; the smallest difference that the questions could show is said",
        _shows_nothing,
    ),
)


def beats_plain(entry: Mapping[str, Any]) -> bool:
    """Whether a benchmark is better than plain after correction."""
    return _significant(entry["p_plain_holm"]) and _gain(entry, entry["difference"]) > 0


def beats_all(entry: Mapping[str, Any]) -> bool:
    """Whether a benchmark is better than plain and than the best control, after correction."""
    control = _best_control(entry)
    return (
        _significant(entry["p_holm"])
        and _gain(entry, entry["difference"]) > 0
        and (control is None or _gain(entry, control["difference"]) > 0)
    )


def confounded(entry: Mapping[str, Any]) -> str:
    """How a confound explains a gain; "" where none does.

    * yes-ratio: it moved by more than its threshold (5 points), and questions whose answer is yes, or those
      whose answer is no, are answered worse. Another threshold between yes and no, without any better sight,
      gains here and loses there.
    * length: texts are shorter by more than the threshold (10 %), and no plain texts of the same length were
      among the controls (`stop-after`).
    """
    given = entry["confounds"]
    yes, words = given["yes_ratio"], given["length"]
    if yes and abs(yes[1] - yes[0]) > THRESHOLDS["yes_ratio"].bound:
        for label in LABELS:
            if (right := given[f"right_{label}"]) and right[1] < right[0]:
                moved, lost = _points(yes[1] - yes[0]), _points(right[1] - right[0])
                return f"the yes-ratio moves by {moved}, and what is rightly {label} is found by {lost}"
    matched = any(name.startswith("stop-after") for name in entry["controls"])
    if not yes and words and words[1] < (1 - THRESHOLDS["words"].bound) * words[0] and not matched:
        return f"texts are {1 - words[1] / words[0]:.0%} shorter, and no control is as short"
    return ""


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


def _to_control(entry: Mapping[str, Any]) -> str:
    control = _best_control(entry)
    return "" if control is None else f", {_change(control, entry)} to {entry['best_control']}"


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
