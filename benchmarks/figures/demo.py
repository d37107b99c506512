"""What methods do to the demo model, and what the model does by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from figures.markdown import number, table
from figures.sources import read
from regaze.eval.report import tables
from regaze.eval.report.markdown import markdown_table
from regaze.interventions.registry import BUILT_IN, lacking_methods

__all__ = [
    "comparison",
    "comparison_cost",
    "comparison_damage",
    "comparison_findings",
    "comparison_reading",
    "comparison_setting",
    "demo_captions",
    "demo_heads",
    "demo_interventions",
    "demo_second",
    "demo_training",
    "demo_yes_no",
]


def _compared(name: str) -> Mapping[str, Any]:
    """The benchmark "pope" or "captions" of the comparison of all methods."""
    benchmark: Mapping[str, Any] = read(f"benchmarks/results/comparison-{name}.json")["benchmark"]
    return benchmark


def comparison(name: str) -> str:
    """The leading figures of every condition, as in a report."""
    benchmark = _compared(name)
    notes = [tables.question_note(benchmark), tables.statistics_note(benchmark)]
    notes += tables.benchmark_notes(benchmark)
    heading = f"## {tables.leading_title(name, benchmark)}"
    parts = [heading, *notes, markdown_table(tables.main_table(benchmark))]
    if rows := tables.controls_table(benchmark):
        parts += [f"### {name}: methods against their controls", tables.CONTROLS_NOTE, markdown_table(rows)]
    return "\n\n".join(parts)


def comparison_damage() -> str:
    """What every method loses in the damage check, as in a report."""
    damage = read("benchmarks/results/comparison-mmstar.json")["damage"]
    return "\n\n".join([tables.damage_note(damage), markdown_table(tables.damage_table(damage))])


def comparison_cost(name: str) -> str:
    """Texts and cost of every condition, as in a report, without the seconds: other programs were running."""
    head, *rows = tables.confounds_table(_compared(name))
    shown = [place for place, name in enumerate(head) if name != "seconds"]
    table = markdown_table([[row[place] for place in shown] for row in (head, *rows)])
    return f"{tables.THRESHOLDS_NOTE}\n\n{table}"


def comparison_reading() -> str:
    """How the tables are read, as in a report."""
    return "\n\n".join(tables.reading_notes([_compared("pope")]))


def comparison_setting() -> str:
    """Where and with what the comparison was made."""
    found = read("benchmarks/results/comparison-pope.json")
    versions, facts = found["versions"], found["machine"]
    return (
        f"CPU ({facts['cpu']}, {facts['cores']} cores, other programs running), regaze {versions['regaze']}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, {found['dtype']}."
    )


def _figure(
    entry: Mapping[str, Any], figure: str, benchmark: Mapping[str, Any], way: str = "edited"
) -> float:
    split, scorer = tables.leading_scorer(benchmark)
    value = entry["figures"][split][scorer][way][figure]["value"]
    return float(value if figure in benchmark["numbers"].get(scorer, ()) else 100 * value)


def _p(entry: Mapping[str, Any], benchmark: Mapping[str, Any]) -> float:
    split, scorer = tables.leading_scorer(benchmark)
    return float(entry["figures"][split][scorer]["difference"]["holm_p"])


def comparison_findings() -> str:
    """What stands out: every sentence is read off the results, and lists whoever it is true of."""
    pope, captions = _compared("pope"), _compared("captions")
    ran, told = (
        {label: entry for label, entry in each["methods"].items() if not entry.get("error")}
        for each in (pope, captions)
    )
    plain = _figure(pope["plain"], "accuracy", pope, "plain")
    changes = {label: _figure(entry, "accuracy", pope) - plain for label, entry in ran.items()}
    sure = [label for label, entry in ran.items() if _p(entry, pope) < 0.05]
    better = [label for label in sure if changes[label] > 0]
    worse = sorted((label for label in sure if changes[label] < 0), key=changes.__getitem__)
    lines = [
        f"- Yes/no: plain {number(plain, 1)}. After correction for the number of methods "
        + (
            f"these raise the accuracy: {_with(better, changes)}. "
            if better
            else "nothing raises the accuracy. "
        )
        + (f"These lower it: {_with(worse, changes)}." if worse else "Nothing lowers it."),
    ]
    chair, recall = (
        {label: _figure(entry, figure, captions) for label, entry in told.items()}
        for figure in ("chair_s", "recall")
    )
    start = [_figure(captions["plain"], figure, captions, "plain") for figure in ("chair_s", "recall")]
    lower = sorted(
        (label for label, entry in told.items() if chair[label] < start[0] and _p(entry, captions) < 0.05),
        key=chair.__getitem__,
    )
    named = "; ".join(
        f"{label} {number(chair[label], 1)} at recall {number(recall[label], 1)}"
        + (f" ({', '.join(told[label]['flags'])})" if told[label]["flags"] else "")
        for label in lower
    )
    lines.append(
        f"- Captions: plain CHAIR_s {number(start[0], 1)} at recall {number(start[1], 1)}. Lower after "
        f"correction: {named or 'nobody'}. Look at recall, length and repetition before believing a "
        "lower CHAIR."
    )
    higher = [
        label for label, entry in told.items() if chair[label] > start[0] and _p(entry, captions) < 0.05
    ]
    by = {label: chair[label] - start[0] for label in higher}
    lines.append(
        f"- CHAIR_s rises with {_with(sorted(higher, key=lambda label: -by[label]), by) or 'nobody'}."
    )
    lines += [_against_controls(name, found) for name, found in (("Yes/no", pope), ("Captions", captions))]
    errors = {label: entry["error"] for label, entry in pope["methods"].items() if entry.get("error")}
    lines += [f"- {label} has no figures: {error.split(';')[0]}." for label, error in errors.items()]
    compared = {label.split()[0] for label in pope["methods"]}  # labels begin with the method's name
    lacking = lacking_methods()
    missing = [
        f"{name} ({lacking[name].split(':')[0].replace('`', '')})" if name == "degf" else name
        for name in sorted({*BUILT_IN} - compared)
    ]
    if missing:
        lines.append(f"- Not compared: {', '.join(missing)}.")
    return "\n".join(line for line in lines if line)


def _against_controls(name: str, benchmark: Mapping[str, Any]) -> str:
    """Which methods beat the best of their controls, and which ones that are; "" without controls."""
    rows = tables.controls_table(benchmark)[1:]
    if not rows:
        return ""
    best = Counter(row[1].split(" of ")[0] for row in rows)
    beating = ", ".join(row[0] for row in rows if row[-1] == "yes") or "no method"
    named = ", ".join(f"{control} ({count})" for control, count in best.most_common())
    return f"- {name}: the best of its controls is beaten by {beating}. It is, of so many methods: {named}."


def _with(labels: list[str], changes: Mapping[str, float]) -> str:
    return ", ".join(f"{label} ({changes[label]:+.1f})" for label in labels)


def demo_interventions() -> str:
    """Three conditions of the comparison on the yes/no questions."""
    pope = _compared("pope")
    split, scorer = tables.leading_scorer(pope)
    numbers = pope["numbers"].get(scorer, ())
    plain = pope["plain"]["figures"][split][scorer]["plain"]["accuracy"]
    rows = [["none", tables.format_number("accuracy", plain["value"], numbers), ""]]
    names = {
        "var": "`--method var` (default parameters)",
        "knockout (0,0) (0,3)": "`--method knockout --set heads=[[0,0],[0,3]]`, the two heads that look at "
        "the asked-for thing",
        "knockout (0,1) (0,2)": "`--method knockout --set heads=[[0,1],[0,2]]`, two other heads of that "
        "layer",
    }
    for label, text in names.items():
        found = pope["methods"][label]["figures"][split][scorer]
        edited = tables.format_number("accuracy", found["edited"]["accuracy"]["value"], numbers)
        rows.append(
            [
                text,
                edited,
                tables.format_estimate("accuracy", found["difference"]["accuracy"], numbers, "+"),
            ]
        )
    return table(["intervention", "accuracy", "difference to plain [95 %]"], rows)


# The model by itself ----------------------------------------------------------------------------------

FIRST, SECOND = "docs/assets/demo-measured.json", "docs/assets/demo-measured-seed2.json"


def demo_yes_no() -> str:
    """Yes/no questions about held-out scenes."""
    columns = {
        "accuracy": "accuracy",
        "precision": "precision",
        "recall": "recall",
        "F1": "f1",
        "yes": "yes_ratio",
        "right if present": "accuracy_present",
        "right if absent": "accuracy_absent",
    }
    splits = read(FIRST)["pope"]
    rows = [
        [split, str(found["questions"]), *(number(100 * found[key], 1) for key in columns.values())]
        for split, found in splits.items()
    ]
    unread = sum(found["neither_yes_nor_no"] for found in splits.values())
    note = f"All in percent. {unread} answers were neither `Yes` nor `No`."
    return f"{table(['split', 'questions', *columns], rows)}\n\n{note}"


def demo_captions() -> str:
    """Descriptions of held-out scenes."""
    chair = read(FIRST)["chair"]
    rows = [
        ["CHAIR_s (descriptions with a hallucinated object)", _percent(chair["chair_s"])],
        ["CHAIR_i (hallucinated share of mentions)", _percent(chair["chair_i"])],
        ["recall of objects", _percent(chair["recall"])],
        ["words per description", number(chair["words_per_caption"], 1)],
        ["hallucinated mentions", str(chair["hallucinated_mentions"])],
        ["of these, objects that keep company with the scene", _percent(chair["co_occurring"])],
        ["the same for a random absent category (chance)", _percent(chair["co_occurring_chance"])],
    ]
    return table(["", ""], rows)


def demo_second() -> str:
    """The same on scenes of another seed."""
    found = read(SECOND)
    splits = ", ".join(f"{number(100 * f['accuracy'], 1)} ({name})" for name, f in found["pope"].items())
    chair = found["chair"]
    return (
        f"On another {found['scenes']} scenes (seed {found['seed']}): accuracy {splits}; CHAIR_s "
        f"{_percent(chair['chair_s'])}, CHAIR_i {_percent(chair['chair_i'])}, recall "
        f"{_percent(chair['recall'])}, {_percent(chair['co_occurring'])} of the hallucinated mentions keep "
        f"company against {_percent(chair['co_occurring_chance'])} by chance."
    )


def demo_heads() -> str:
    """The heads that AD-HH removes, from the model's configuration."""
    heads = read("regaze/demo/model/config.json")["text_config"]["hallucination_heads"]
    return ", ".join(f"({layer}, {head})" for layer, head in heads)


def demo_training() -> str:
    """The stages of training, from the log that lies beside the weights."""
    scenes = {"vision": 64, "projector": 64, "language": 16, "mix": 32, "describe": 16}
    log = read("regaze/demo/model/training_log.csv")
    rows, totals, before = [], [0.0, 0.0], [0.0, 0.0]
    for stage in scenes:
        steps = [row for row in log if row["stage"] == stage]
        first, last = (
            [float(row[name]) for name in ("seconds", "cpu_seconds")] for row in (steps[0], steps[-1])
        )
        # A stage in the same process as the one before goes on counting from there.
        begun = before if first > before else [0.0, 0.0]
        times = [(end - start) / 60 for end, start in zip(last, begun, strict=True)]
        totals, before = [a + b for a, b in zip(totals, times, strict=True)], last
        figures = [number(float(steps[-1][name]), 3) for name in ("loss", "accuracy")]
        rows.append(
            [stage, steps[-1]["step"], str(scenes[stage]), *figures, *(number(each, 1) for each in times)]
        )
    rows.append(["total", "", "", "", "", *(number(each, 0) for each in totals)])
    head = ["stage", "steps", "scenes per step", "loss, last", "accuracy, last", "wall, min", "CPU, min"]
    return table(head, rows)


def _percent(share: float) -> str:
    return f"{number(100 * share, 1)} %"
