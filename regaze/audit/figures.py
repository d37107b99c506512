"""The figures of each method from the run that tested it: to the plain model, and to each of its controls.

Differences are paired by question, intervals and tests by cluster (`eval.benchmarks.common.scoring.compare`).
A difference is the method's figure minus the other's, also of figures of which less is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regaze.audit.questions import prompts_of
from regaze.audit.verdicts import LEVEL, too_many
from regaze.caching import cached_property
from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark
from regaze.eval.benchmarks.common.yes_no import LABELS
from regaze.eval.benchmarks.common.yes_no_reading import read_yes_no
from regaze.eval.benchmarks.plain_text import excludes_tokens
from regaze.eval.comparison.conditions import PLAIN, drop_failed_clusters
from regaze.eval.comparison.control_plan import GENERAL, kind_of_answers
from regaze.eval.comparison.verdicts import p_value
from regaze.eval.run.results import finite
from regaze.eval.stats import estimators
from regaze.eval.tuning.choice import Criterion

#: Names of the controls that are no method's own.
SHARED = {"yes-offset", "stop-after", *(control.name for control in GENERAL)}
#: Nats per token of plain text that a method may cost: 5 % of perplexity.
TEXT_LOSS = 0.05
#: {item key: {condition: answer}}
Answers = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Tested:
    """One benchmark of the run that tested the methods.

    Attributes:
        benchmark: its questions. results: what results.json has of it. answers: those of all conditions.
        seed: of the intervals. decides: whether verdicts may rest on it.
    """

    benchmark: Benchmark
    results: Mapping[str, Any]
    answers: Answers
    seed: int
    decides: bool

    @cached_property
    def leading(self) -> dict[str, Any]:
        """The figure that is tested: "split", "scorer", "figure" and "lower_is_better"."""
        return Criterion().in_figures(self.results["plain"]["figures"], self.benchmark)

    def of_method(self, label: str) -> dict[str, Any] | None:
        """What audit.json has about a method here; None where it could not be asked."""
        entry = self.results["methods"].get(label)
        if entry is None or entry["error"] is not None:
            return None
        lead = self.leading
        split, scorer, figure = lead["split"], lead["scorer"], lead["figure"]
        scores = entry["figures"][split]
        compared = scores[scorer]
        ran, failed = self._controls(label)
        best = self._hardest(ran)
        found = {
            "metric": figure,
            "scorer": scorer,
            "share": _is_share(self.results, scorer, figure),
            "lower_is_better": lead["lower_is_better"],
            "decides": self.decides,
            "questions": compared["statistics"]["items"],
            "clusters": compared["statistics"]["clusters"],
            "prompts": len(prompts_of(self.benchmark)),
            "failed": entry["failed"],
            "left_out": entry["left_out"],
            "score": compared["edited"][figure]["value"],
            "interval": _interval(compared["edited"][figure]),
            "plain": compared["plain"][figure]["value"],
            "plain_interval": _interval(compared["plain"][figure]),
            **_difference(compared["difference"], figure),
            "detectable": None,  # depends on the number of tests, see add_corrected
            "changed": entry["answers_changed"],
            "controls": ran,
            "own_controls": [name for name in ran if name.split()[0] not in SHARED],
            "controls_failed": failed,
            "best_control": best,
            "p_plain": p_value(compared["difference"]),
            "p_control": self._one_sided(ran[best]) if best else None,
            "splits": {
                name: _short(each[scorer], figure) for name, each in entry["figures"].items() if name != split
            },
            "scorers": {name: _short(each, _leading(each)) for name, each in _scorers(scores)},
            "disagreement": scores.get("disagreement"),
            "confounds": {**self._confounds(entry, compared), **self._right_by_label(label)},
            "flags": entry["flags"],
        }
        checked: dict[str, Any] = finite(found)
        return checked

    def _controls(self, label: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """The method compared with each of its controls, and why others could not be asked."""
        ran, failed = {}, {}
        for name in self.results["controls_of"].get(label, ()):
            entry = self.results["controls"].get(name) or self.results["methods"].get(name)
            if entry is None or entry["error"] is not None:
                failed[name] = entry["error"] if entry else "it was not asked"
                continue
            compared = self._against(name, label)
            if isinstance(compared, str):
                failed[name] = compared
            else:
                ran[name] = compared
        return ran, failed

    def _against(self, control: str, label: str) -> dict[str, Any] | str:
        """A method compared with a control of its; the reason where too few questions have both answers."""
        pair = self._pair(control, label)
        if pair is None:
            return "too many of its answers failed"
        lead = self.leading
        figures = pair[lead["split"]][lead["scorer"]]
        return {
            "score": figures["plain"][lead["figure"]]["value"],
            **_difference(figures["difference"], lead["figure"]),
            "p": p_value(figures["difference"]),
        }

    def _pair(self, first: str, second: str) -> dict[str, Any] | None:
        """The figures of two conditions on the questions that both answered; None where these are too few."""
        given = [self.answers.get(item.key, {}) for item in self.benchmark.items]
        failed = {index for index, each in enumerate(given) if not {first, second} <= each.keys()}
        try:
            scored, indices = drop_failed_clusters(self.benchmark, failed)
        except InputError:  # nothing is left
            return None
        if too_many(len(given) - len(indices), len(indices)):
            return None
        pair = {
            "plain": [given[index][first] for index in indices],
            "edited": [given[index][second] for index in indices],
        }
        return scored.score(pair, seed=self.seed)

    def _hardest(self, controls: Mapping[str, Mapping[str, Any]]) -> str | None:
        """The control that the method is least shown to beat; of such ones, the one with the best score.

        The best score alone would be that of the luckiest: random heads are a single draw.
        """
        sign = -1.0 if self.leading["lower_is_better"] else 1.0

        def hardness(name: str) -> tuple[float, float]:
            p, score = self._one_sided(controls[name]), controls[name]["score"]
            return 2.0 if p is None else p, sign * score if score == score else -math.inf

        return max(controls, key=hardness, default=None)

    def _one_sided(self, control: Mapping[str, Any]) -> float | None:
        """The p-value for the method being better than a control: 1 where it is not."""
        p: float | None = control["p"]
        worse = control["difference"] >= 0 if self.leading["lower_is_better"] else control["difference"] <= 0
        return 1.0 if p is not None and worse else p

    def _confounds(self, entry: Mapping[str, Any], compared: Mapping[str, Any]) -> dict[str, Any]:
        """{confound: [plain, method]}; null where there is nothing to measure."""
        plain, edited = self.results["plain"]["text"], entry["text"]
        names = {
            "length": "words",
            "repetition": "repeated_4grams",
            "yes_ratio": "yes_ratio",
            "unreadable": "unreadable",
        }
        found = {
            name: [plain[key], edited[key]] if plain.get(key) is not None and key in edited else None
            for name, key in names.items()
        }
        recalled = [compared[name].get("recall") for name in (PLAIN, "edited")]
        texts = kind_of_answers(self.benchmark.items) == "texts" and None not in recalled
        return {**found, "recall": [each["value"] for each in recalled] if texts else None}

    def _right_by_label(self, label: str) -> dict[str, Any]:
        """{"right_yes", "right_no": [plain, method]}: shares of right answers where the label is so."""
        found: dict[str, Any] = {}
        for wanted in LABELS:
            asked = [self.answers.get(item.key, {}) for item in self.benchmark.items if item.label == wanted]
            both = [each for each in asked if {PLAIN, label} <= each.keys()]
            right = [
                sum(read_yes_no(each[name]) == wanted for each in both) / len(both) if both else None
                for name in (PLAIN, label)
            ]
            found[f"right_{wanted}"] = right if both else None
        return found


def add_corrected(methods: Iterable[Mapping[str, Any]]) -> None:
    """Set "p_plain_holm", "p_control_holm", "p_holm" and "detectable" in the benchmarks of a model's methods.

    All three are corrected over all methods and all benchmarks that decide (of others: over methods, for each
    of these by itself). "p_holm" is of the larger of the two p-values: that the method is as good as the
    plain model or as the control that is hardest to beat. "detectable" is of the first step of the
    correction, where a test has to reach the level divided by the number of tests.
    """
    families: dict[str, list[dict[str, Any]]] = {}
    for method in methods:
        for name, entry in method.items():
            families.setdefault("" if entry["decides"] else name, []).append(entry)
    for entries in families.values():
        level = LEVEL / len(entries)
        for entry in entries:
            entry["detectable"] = _detectable(entry, level)
            given = [entry["p_plain"], *([entry["p_control"]] if entry["best_control"] else [])]
            entry["p_joint"] = None if None in given else max(given)
        for name in ("p_plain", "p_control", "p_joint"):
            corrected = f"{name}_holm" if name != "p_joint" else "p_holm"
            tested = [entry for entry in entries if entry[name] is not None]
            for entry in entries:
                entry[corrected] = None
            for entry, p in zip(tested, estimators.holm([each[name] for each in tested]), strict=True):
                entry[corrected] = p
        for entry in entries:
            del entry["p_joint"]


def _detectable(entry: Mapping[str, Any], level: float) -> float | None:
    """The smallest difference to the plain model that would be found four times out of five.

    A share is tested exactly, for which an answer has to change in each of several clusters.
    """
    low, high = entry["difference_interval"]
    if low is None or high is None:
        return None
    least = estimators.detectable(low, high, level)
    if entry["share"]:
        least = max(least, estimators.fewest_changes(level) / entry["questions"])
    return float(least)


def cost(run: Mapping[str, Any], label: str) -> dict[str, float | None]:
    """Generated tokens per second in this run, and how many times slower than the plain model's they are."""
    speeds = {}
    for name in (PLAIN, label):
        costs = [  # of the benchmarks that both were asked
            entry["cost"]
            for each in run["benchmarks"].values()
            if (asked := each["methods"].get(label)) and asked["cost"]
            if (entry := each["plain"] if name == PLAIN else asked)
        ]
        tokens, seconds = sum(each["tokens"] for each in costs), sum(each["seconds"] for each in costs)
        speeds[name] = tokens / seconds if seconds and tokens else None
    plain, edited = speeds[PLAIN], speeds[label]
    return {"tokens_per_second": edited, "ratio": plain / edited if plain and edited else None}


def damage(run: Mapping[str, Any], label: str, text: Tested | None) -> dict[str, Any] | None:
    """The method in the damage check; None where none was made.

    Args:
        text: the passages of plain text, if there are any.
    """
    checked = run["damage"]
    if checked is None:
        return None
    about = {"benchmark": checked["benchmark"], "questions": checked["questions"]}
    about["text"] = None if text is None else _text_loss(text, label)
    entry = checked["methods"].get(label)
    error = checked["error"] or ((entry or {}).get("error") if entry else "it was not asked")
    error = error or _left_out(
        run["benchmarks"][checked["benchmark"]]["methods"][label], checked["questions"]
    )
    if error or entry is None:
        return {**about, "error": error, "damaged": None}
    return {
        **about,
        "error": None,
        "metric": checked["figure"],
        "share": _is_share(run["benchmarks"][checked["benchmark"]], checked["scorer"], checked["figure"]),
        "score": entry["value"]["value"],
        "interval": _interval(entry["value"]),
        "plain": checked["plain"]["value"],
        "difference": entry["difference"]["value"],
        "difference_interval": _interval(entry["difference"]),
        "detectable": entry["detectable"],
        "p": entry["p"],
        "damaged": entry["damaged"],
    }


def _text_loss(text: Tested, label: str) -> dict[str, Any]:
    """How much of the language model a method leaves.

    It is damage where text is less likely by more than `TEXT_LOSS` a token and the whole interval, of which
    there has to be one, is a loss. A method whose plausibility constraint excludes a token of a passage has
    no perplexity, and no damage by that: what it writes itself never needs an excluded token.
    """
    entry = text.of_method(label)
    if entry is None:
        return {"error": "it has no likelihoods", "damaged": None}
    if failed := _left_out(entry, len(text.benchmark.items)):
        return {"error": failed, "damaged": None}
    given = [each[label] for each in text.answers.values() if {PLAIN, label} <= each.keys()]
    if excluded := sum(excludes_tokens(answer) for answer in given):
        return {"error": f"it excludes tokens of {excluded} of {len(given)} passages", "damaged": None}
    loss, high = -entry["difference"], entry["difference_interval"][1]
    return {
        "error": None,
        "passages": entry["questions"],
        "perplexity": _perplexity(entry["score"]),
        "plain": _perplexity(entry["plain"]),
        "difference": entry["difference"],
        "difference_interval": entry["difference_interval"],
        "p": entry["p_plain"],
        "damaged": loss > TEXT_LOSS and high is not None and high < 0.0,
    }


def _left_out(entry: Mapping[str, Any], questions: int) -> str | None:
    """Why a check counts for nothing: too many of its questions have no answers."""
    left_out = entry["left_out"]
    if not too_many(left_out, questions - left_out):
        return None
    return f"{left_out} of {questions} questions were left out, because answers failed"


def _is_share(results: Mapping[str, Any], scorer: str, figure: str) -> bool:
    return figure not in results["numbers"].get(scorer, ())


def _perplexity(logprob: float) -> float:
    return math.exp(min(-logprob, 700.0))  # of what is wrecked it would overflow


def _interval(estimate: Mapping[str, Any]) -> list[float | None]:
    return [estimate["low"], estimate["high"]]


def _difference(difference: Mapping[str, Any], figure: str) -> dict[str, Any]:
    return {
        "difference": difference[figure]["value"],
        "difference_interval": _interval(difference[figure]),
    }


def _short(compared: Mapping[str, Any], figure: str) -> dict[str, Any]:
    return {
        "metric": figure,
        "score": compared["edited"][figure]["value"],
        "plain": compared["plain"][figure]["value"],
        **_difference(compared["difference"], figure),
        "p": p_value(compared["difference"]),
    }


def _scorers(scores: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, Any]]]:
    return [
        (name, each) for name, each in scores.items() if isinstance(each, Mapping) and "difference" in each
    ]


def _leading(compared: Mapping[str, Any]) -> str:
    share = compared.get("statistics", {}).get("share")
    return str(share if share else next(iter(compared["plain"])))
