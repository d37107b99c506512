"""Results as tables of text with the headings in the first row, for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from regaze.eval.comparison.confounds import THRESHOLDS, Threshold
from regaze.eval.comparison.verdicts import p_value

Table = list[list[str]]

LABELS = {
    "f1": "F1",
    "yes_ratio": "yes-ratio",
    "tnr": "TNR",
    "tpr": "TPR",
    "chair_s": "CHAIR_s",
    "chair_i": "CHAIR_i",
    "chair_distinct": "distinct CHAIR",
    "repeated_4grams": "repeated 4-grams",
    "cut_in_thinking": "cut in thinking",
    "forwards_per_token": "forwards per token",
    "peak_mib": "peak memory",
}


def _amount(bound: Threshold) -> str:
    number = f"{100 * bound.bound:.0f}"
    return f"{number} % of its figure" if bound.relative else f"{number} point{'s' * (number != '1')}"


_BOUNDS = ", ".join(f"{LABELS.get(name, name)} {_amount(bound)}" for name, bound in THRESHOLDS.items())
THRESHOLDS_NOTE = (
    f"Texts are those of the answers that are scored. A change is named as a confound beyond: {_BOUNDS}."
)
SECONDS_NOTE = (
    "Seconds are those of one pass and no benchmark; where one condition shares prefixes and another does "
    "not, they differ for that reason alone."
)
_FIGURES_NOTE = (
    "Shares are in percent, with 95 % intervals in brackets; a figure without brackets did not vary between "
    "the clusters that were drawn, or there was only one, so that nothing can be said about its spread."
)
_METHODS_NOTES = (
    "A method's figure is followed by its difference to the plain model; Holm p is corrected for the number "
    "of methods. Detectable is the smallest true difference of the first figure that this many questions "
    "find four times out of five: a smaller one may well be there unseen. Where fewer than about ten "
    "clusters changed, a bootstrap interval is too narrow: believe p.",
    "Changed: answers that are not those of the plain model, word for word. Confounds: what changed along "
    "and may be all there is to a gain.",
)


CONTROLS_NOTE = (
    "A method beats its controls where its figure is better than that of the best of them, doing nothing "
    "(the plain model) included: the paired test of the table above between these two, corrected for the "
    "number of methods (Holm), at 5 %. Controls are chosen by the questions: on texts, stop-after is as long "
    "on average as the method's answers, where these are shorter than the plain model's."
)


DAMAGE_NOTE = (
    "Multiple-choice questions that have nothing to do with hallucination. A method damages the model where "
    "the interval of its difference lies below zero and p is below 5 %; this is not corrected for the number "
    "of methods. No means that none was found: a loss smaller than detectable is often missed."
)


def reading_notes(benchmarks: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """How to read the tables of these benchmarks; the plain model alone is compared with nothing."""
    methods = any(True for benchmark in benchmarks for _ in iter_conditions(benchmark))
    return (_FIGURES_NOTE, *(_METHODS_NOTES if methods else ()))


def turned(table: Sequence[Sequence[str]]) -> Table:
    """The table with a column for each of its rows: of few conditions with many figures the narrower one."""
    return [list(column) for column in zip(*table, strict=True)]


def leading_title(name: str, benchmark: Mapping[str, Any]) -> str:
    """Benchmark, split and scorer of the leading figures; a split called like its benchmark is left out."""
    split, scorer = leading_scorer(benchmark)
    return ", ".join(dict.fromkeys([name, split, f"{scorer} scorer"]))


def leading_scorer(benchmark: Mapping[str, Any]) -> tuple[str, str]:
    """(split, scorer) of the leading figures: all splits together, the benchmark's own script."""
    figures = benchmark["plain"]["figures"]
    split = "all" if "all" in figures else next(iter(figures))
    return split, scorer_names(figures[split])[0]


def scorer_names(scores: Mapping[str, Any]) -> list[str]:
    """Names of the scorers of a split."""
    return [name for name, compared in scores.items() if isinstance(compared, dict) and "plain" in compared]


def iter_estimates(compared: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(figure, {value, low, high}) of a condition or of a difference."""
    for figure, estimate in compared.items():
        if isinstance(estimate, Mapping) and {"value", "low", "high"} <= estimate.keys():
            yield figure, estimate


def iter_conditions(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, results) of the methods, and of the controls, which are named as such."""
    yield from benchmark["methods"].items()
    for label, entry in benchmark.get("controls", {}).items():
        yield f"control: {label}", entry


def question_note(benchmark: Mapping[str, Any]) -> str:
    """The number of questions, and of those that failed or are left out."""
    plain, (split, _) = benchmark["plain"], leading_scorer(benchmark)
    scores = plain["figures"][split]
    text = count_text(scores)
    if plain["asked"]:
        text += f" ({plain['asked']} prompts that differ)"
    for label, entry in [("plain", plain), *iter_conditions(benchmark)]:
        if entry.get("cut_in_thinking"):
            text += f"; {label}: {_count(entry['cut_in_thinking'], 'answers')} cut in their thinking"
    for label, entry in [("plain", plain), *iter_conditions(benchmark)]:
        if entry.get("failed") or entry.get("left_out"):
            text += f"; {label}: {entry['failed']} failed, {entry['left_out']} left out of the scores"
    return text + "."


def count_text(scores: Mapping[str, Any]) -> str:
    """Questions of a split and what they are about: "12 questions on 3 images"."""
    subjects = [_count(scores[kind], kind) for kind in ("images", "videos") if scores.get(kind)]
    return f"{_count(scores['questions'], 'questions')} on {' and '.join(subjects) or 'no images'}"


def _count(number: int, things: str) -> str:
    """A number of things: 1 image, 2 images."""
    return f"{number} {things.removesuffix('s') if number == 1 else things}"


def statistics_note(benchmark: Mapping[str, Any]) -> str:
    """Intervals and test of the leading figures, and the units that they take as independent."""
    split, scorer = leading_scorer(benchmark)
    used = benchmark["plain"]["figures"][split][scorer].get("statistics")
    if used is None:
        return ""
    items, clusters = used["items"], used["clusters"]
    if items > clusters:
        apart = (
            f"the {items} questions fall into {_count(clusters, 'clusters')} (an image with all "
            "its questions, or what else is scored together)"
        )
    else:
        several = f"no two of the {items} questions share an image, as far as is known"
        apart = several if items > 1 else "there is one question"
    text = f"Intervals: {used['intervals']}; {apart}."
    return f"{text} Test: {used['test']}." if benchmark["methods"] else text


def benchmark_notes(benchmark: Mapping[str, Any]) -> list[str]:
    """What the benchmark has to say about its questions and figures, and how far its scorers disagree."""
    notes = [*benchmark["benchmark"].get("notes", ()), disagreement_note(benchmark)]
    return [note for note in notes if note]


def disagreement_note(benchmark: Mapping[str, Any]) -> str:
    """How many answers the scorers read differently, and whether a difference depends on the scorer."""
    split, _ = leading_scorer(benchmark)
    ran = {name: entry for name, entry in iter_conditions(benchmark) if not entry.get("error")}
    found = {
        name: entry["figures"][split].get("disagreement")
        for name, entry in [("plain", benchmark["plain"]), *ran.items()]
    }
    if not all(found.values()):
        return ""
    counts = []
    for name, each in found.items():
        count = each["answers"]["plain" if name == "plain" else "edited"]
        counts.append(f"{name} {count['different']}" + f" ({count['opposite']})" * (count["opposite"] > 0))
    names = ", ".join(found["plain"]["scorers"])
    if not ran:
        counts = [counts[0].removeprefix("plain ")]
    text = f"Answers that the scorers ({names}) read differently (as opposites): {', '.join(counts)}."
    if not ran:
        return text
    apart = [
        f"{name} is better by {', '.join(each['better'])} and worse by {', '.join(each['worse'])}"
        for name, each in found.items()
        if each.get("sign_depends")
    ]
    if apart:
        return f"{text} The sign of the difference to plain depends on the scorer: {'; '.join(apart)}."
    return f"{text} No sign of a difference to plain depends on the scorer."


def main_table(benchmark: Mapping[str, Any]) -> Table:
    """The leading figures, a row per condition; tests and confounds where the plain model is not alone."""
    split, scorer = leading_scorer(benchmark)
    plain = benchmark["plain"]["figures"][split][scorer]["plain"]
    numbers = benchmark["numbers"].get(scorer, ())
    figures = [name for name, _ in iter_estimates(plain)]
    verdicts = _verdicts(benchmark, split, scorer)
    head = ["", *map(figure_label, figures)]
    if any(True for _ in iter_conditions(benchmark)):
        head += ["p", "Holm p", "detectable", "changed", "confounds"]
    head += ["beats its controls"] if verdicts else []
    estimates = [format_estimate(name, plain[name], numbers) for name in figures]
    rows = [head, ["plain", *estimates, *[""] * (len(head) - len(estimates) - 1)]]
    for name, entry in iter_conditions(benchmark):
        if entry.get("error"):
            rows.append([name, f"cannot run: {entry['error']}", *[""] * (len(head) - 2)])
            continue
        compared = entry["figures"][split][scorer]
        difference = compared["difference"]
        cells = []
        for figure in figures:
            cell = format_number(figure, compared["edited"][figure]["value"], numbers)
            if not _is_missing(difference[figure]["value"]):
                cell += f" ({format_estimate(figure, difference[figure], numbers, '+')})"
            cells.append(cell)
        tests = [format_p(p_value(difference)), format_p(difference.get("holm_p"))]
        least = format_detectable(figures[0], difference[figures[0]].get("detectable"), numbers)
        rows.append([name, *cells, *tests, least, str(entry["answers_changed"]), ", ".join(entry["flags"])])
        if verdicts:
            rows[-1].append(_yes_no(verdicts[name]["beats"]) if name in verdicts else "")
    return rows


def controls_table(benchmark: Mapping[str, Any]) -> Table:
    """Each method against the best of its controls, by the leading figure; no rows without controls."""
    split, scorer = leading_scorer(benchmark)
    numbers, verdicts = benchmark["numbers"].get(scorer, ()), _verdicts(benchmark, split, scorer)
    if not verdicts:
        return []
    figure = next(iter(verdicts.values()))["figure"]
    rows = [["", "best control", f"{figure_label(figure)}, method - control", "p", "Holm p", "beats it"]]
    for name, verdict in verdicts.items():
        difference = format_estimate(figure, verdict, numbers, "+")
        tests = [format_p(verdict[p]) for p in ("p", "holm_p")]
        rows.append([name, verdict["best"], difference, *tests, _yes_no(verdict["beats"])])
    return rows


def damage_table(damage: Mapping[str, Any]) -> Table:
    """What each method loses in the damage check, the plain model first; no rows where nothing was asked."""
    if damage["error"]:
        return []
    figure = damage["figure"]
    head = ["", figure_label(figure), "method - plain", "p", "detectable", "damage"]
    rows = [head, ["plain", format_estimate(figure, damage["plain"], ()), *[""] * (len(head) - 2)]]
    for name, method in damage["methods"].items():
        if method.get("error"):
            rows.append([name, f"cannot be checked: {method['error']}", *[""] * (len(head) - 2)])
            continue
        value = format_estimate(figure, method["value"], ())
        difference = format_estimate(figure, method["difference"], (), "+")
        least = format_detectable(figure, method["detectable"], ())
        rows.append([name, value, difference, format_p(method["p"]), least, _yes_no(method["damaged"])])
    return rows


def damage_note(damage: Mapping[str, Any]) -> str:
    """What `damage_table` shows, or why there is none."""
    if damage["error"]:
        return f"{damage['benchmark']} could not be asked: {damage['error']}"
    return f"{damage['questions']} questions of {damage['benchmark']}. {DAMAGE_NOTE}"


def _verdicts(benchmark: Mapping[str, Any], split: str, scorer: str) -> dict[str, Mapping[str, Any]]:
    """{method: how it does against the best of its controls by one scorer}."""
    found = {
        name: (entry.get("against_controls") or {}).get(split, {}).get(scorer)
        for name, entry in benchmark["methods"].items()
    }
    return {name: verdict for name, verdict in found.items() if verdict}


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def confounds_table(benchmark: Mapping[str, Any]) -> Table:
    """Statistics of the answers' texts, and the cost, a row per condition."""
    entries = [("plain", benchmark["plain"]), *iter_conditions(benchmark)]
    thinking = ["cut in thinking"] * any(entry.get("cut_in_thinking") for _, entry in entries)
    rows = [
        [
            *("", "words", "repeated 4-grams", "empty", "yes-ratio", "unreadable"),
            *thinking,
            "forwards per token",
            *("seconds", "prompt tokens run", "peak MiB", "shared prefixes"),
        ]
    ]
    for name, entry in entries:
        if entry.get("error"):
            continue
        text, cost = entry["text"], entry["cost"]
        shares = [_percent(text.get(key)) for key in ("repeated_4grams", "empty", "yes_ratio", "unreadable")]
        rows.append(
            [
                *(name, _fixed(text.get("words")), *shares),
                *([str(entry["cut_in_thinking"])] if thinking else []),
                _fixed(cost["forwards_per_token"], 2),
                *(_fixed(cost["seconds"]), str(cost["prefill_tokens"]), _fixed(cost["peak_mib"], 0)),
                f"no: {entry['sharing']}" if entry["sharing"] else "yes",
            ]
        )
    return rows


def full_table(benchmark: Mapping[str, Any]) -> Table:
    """Every figure of every scorer on every split, a column per condition."""
    ran = {name: entry for name, entry in iter_conditions(benchmark) if not entry.get("error")}
    rows = [["split", "scorer", "figure", "plain", *ran]]
    for split, scores in benchmark["plain"]["figures"].items():
        for scorer in scorer_names(scores):
            numbers = benchmark["numbers"].get(scorer, ())
            for figure, value in iter_estimates(scores[scorer]["plain"]):
                row = [split, scorer, figure_label(figure), format_estimate(figure, value, numbers)]
                for entry in ran.values():
                    edited = entry["figures"][split][scorer]["edited"]
                    row.append(format_estimate(figure, edited[figure], numbers))
                rows.append(row)
    return rows


def figure_label(figure: str) -> str:
    """The name of a figure in tables: of pope_f1_shift "POPE F1 shift"."""
    if figure in LABELS:
        return LABELS[figure]
    if figure.endswith("_shift"):
        return f"{figure_label(figure.removesuffix('_shift'))} shift"
    if figure.startswith("pope_"):
        return f"POPE {figure_label(figure.removeprefix('pope_'))}"
    return figure.replace("_", " ")


def format_estimate(figure: str, value: Mapping[str, Any], numbers: Collection[str], sign: str = "") -> str:
    """A figure with its interval, "84.2 [82.5, 85.7]"."""
    middle = format_number(figure, value["value"], numbers, sign)
    if _is_missing(value["value"]) or _is_missing(value["low"]):
        return middle
    low, high = (format_number(figure, value[end], numbers, sign) for end in ("low", "high"))
    return f"{middle} [{low}, {high}]"


def format_number(figure: str, value: float | None, numbers: Collection[str], sign: str = "") -> str:
    """A share in percent, a figure of `numbers` as it is; "undefined" for null and nan."""
    if value is None or value != value:
        return "undefined"
    return f"{value if figure in numbers else 100 * value:{sign}.1f}"


def format_detectable(figure: str, value: float | None, numbers: Collection[str]) -> str:
    """The smallest difference that would be found; "" where no answer changed, so that nothing is known."""
    return "" if _is_missing(value) else format_number(figure, value, numbers)


def format_p(value: float | None) -> str:
    """A p-value; "" for none."""
    return "" if _is_missing(value) else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None or value != value else f"{100 * value:.1f} %"


def _fixed(value: float | None, digits: int = 1) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"


def _is_missing(value: float | None) -> bool:
    return value is None or value != value
