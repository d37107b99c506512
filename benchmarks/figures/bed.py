"""The bed: what it and the best greedy decoder for its labels answer; `benchmarks/bed.py`'s experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from figures.markdown import estimate, machine, number, table
from figures.sources import ROOT, read

__all__ = [
    "bed_base",
    "bed_hallucination",
    "bed_heads",
    "bed_measured",
    "bed_perfect",
    "bed_retrieval",
    "bed_run",
    "bed_sinks",
    "bed_var",
]

PERFECT, MEASURED = "docs/assets/bed-perfect.json", "docs/assets/bed-measured.json"
EXPERIMENTS = "benchmarks/results/bed.json"
NOT_YET = "Not measured yet."


def bed_perfect() -> str:
    """What greedy decoding would answer that learned the labels by heart."""
    return table(["", ""], _answers(read(PERFECT)))


def bed_measured() -> str:
    """The shipped bed beside the best greedy decoder, and what else was measured of it."""
    if not (ROOT / MEASURED).is_file():
        return NOT_YET
    found = read(MEASURED)
    best = dict(_answers(read(PERFECT)))
    rows = [[name, value, best[name]] for name, value in _answers(found)]
    questions = {name: each for name, each in found["questions"].items() if name != "false premise"}
    rows += [[f"{name}: right", _percent(each["accuracy"]), ""] for name, each in questions.items()]
    rows += [
        [f"false premise, {form}: rejected", _percent(each["rejected"]), ""]
        for form, each in found["questions"]["false premise"].items()
    ]
    rows.append(["seconds of a question (median, one thread)", number(found["speed"]["median_seconds"]), ""])
    text = table(["", "the bed", "the best greedy decoder"], rows)
    plain = found["plain_text"]
    if "before" in plain:
        head = ["without an image", "perplexity", f"right of {len(plain['questions'])}"]
        state = {"SmolLM2": plain["before"], "the bed": plain["after"]}
        sides = [[name, number(each["perplexity"]), str(each["right"])] for name, each in state.items()]
        text += f"\n\n{table(head, sides)}\n\n{plain['same']} of the answers are the same, word by word."
    return f"{text}\n\n{found['scenes']} scenes, {found['dtype']}."


def _answers(found: Mapping[str, Any]) -> list[list[str]]:
    """What is known of the bed and of the best decoder for its labels."""
    captions = found["captions"]
    rows = [[f"POPE, {split}: right", _percent(pope["accuracy"])] for split, pope in found["pope"].items()]
    return [
        *rows,
        ["long captions with a hallucinated object (CHAIR_s)", _percent(captions["chair_s"])],
        ["hallucinated mentions (CHAIR_i), first half", _percent(captions["first_half"]["chair_i"])],
        ["hallucinated mentions (CHAIR_i), second half", _percent(captions["second_half"]["chair_i"])],
        ["hallucinated mentions that co-occur with the scene", _percent(captions["co_occurring"])],
        ["absent categories that do (chance)", _percent(captions["co_occurring_chance"])],
        ["words per long caption", number(captions["words"]["mean"], 0)],
    ]


def bed_run(part: str) -> str:
    """Where and how long a part of the experiments ran."""
    found = _part(part)
    if found is None:
        return NOT_YET
    minutes, where = found["seconds"] / 60, machine(found["machine"])
    return f"{found['scenes']} scenes, {minutes:.0f} minutes; measured on {where}"


def bed_sinks() -> str:
    """Image sinks and their attention, by layer; how many are left with the background in their place."""
    found = _part("sinks")
    if found is None:
        return NOT_YET
    figures = found["sinks"]["figures"]
    rows = [
        [
            str(row["layer"]),
            number(row["image_sinks"], 1),
            *(_percent(row[name]) for name in ("to_image_sinks", "to_image", "to_first")),
        ]
        for row in figures["layers"]
    ]
    head = ["layer", "image sinks per scene", "attention on them", "on the image", "on the first token"]
    most, left = (found[name]["figures"]["image_sinks"] for name in ("sinks", "background"))
    return (
        f"{table(head, rows, right=4)}\n\nIn the layer with most of them {number(most['mean'], 1)} per scene "
        f"(least {most['least']}, most {most['most']}); with the background in their place "
        f"{number(left['mean'], 1)}. {figures['scenes']} scenes; sink value at least {figures['tau']:g} in "
        f"dimension {', '.join(map(str, figures['dimensions']))}."
    )


def bed_var() -> str:
    """VAR where the image has sinks, and where it has none."""
    found = _part("sinks")
    if found is None:
        return NOT_YET
    names = {"sinks": "as it is", "background": "sinks made background"}
    return "\n\n".join(
        f"**The image {name}**\n\n{_yes_no(found[key]['answers'])}" for key, name in names.items()
    )


def bed_heads() -> str:
    """What is left without the heads that look, and without others."""
    found = _part("heads")
    if found is None:
        return NOT_YET
    return (
        f"{_yes_no(found['answers'])}\n\nThe heads, with the attention of the asked-for word's row on the "
        f"thing (mean over {found['words']} words; over all heads {_percent(found['mean'])}): "
        f"{_heads(found['heads'], _percent)}."
    )


def bed_hallucination() -> str:
    """Captions without the heads that support words for absent things."""
    found = _part("hallucination")
    if found is None:
        return NOT_YET
    rows = []
    for label, condition in found["answers"].items():
        (split,) = condition["splits"].values()
        rows.append([label, *(estimate(split[name], 1, 100) for name in ("chair_s", "chair_i", "recall"))])
        rows[-1].append(_changed(condition))
    return (
        f"{table(['', 'CHAIR_s', 'CHAIR_i', 'recall', 'changed'], rows)}\n\nThe heads, found in "
        f"{found['captions']} captions, with their score in nats: {_heads(found['heads'], number)}."
    )


def bed_retrieval() -> str:
    """Retrieval heads of the bed and of its base."""
    found = _part("retrieval")
    if found is None:
        return NOT_YET
    rows = [
        [
            name,
            f"{each['succeeded']} of {each['run']}",
            str(each["over 0.1"]),
            _heads(each["heads"], number),
        ]
        for name, each in found["models"].items()
    ]
    rows += [[name, "none", "", ""] for name in found["failed"]]
    text = table(["model", "needles found", "heads with 0.1 and more", "the best, with their scores"], rows)
    if "correlation" in found:
        text += (
            f"\n\nOver all heads the scores of both correlate with {number(found['correlation'])}; "
            f"{found['shared']} of the ten best are the same."
        )
    return text


def bed_base() -> str:
    """Answers over two bases."""
    found = _part("base")
    if found is None:
        return NOT_YET
    right = ", ".join(
        f"{digest[:12]}: {count}" for digest, count in zip(found["bases"], found["right"], strict=True)
    )
    return (
        f"{found['same']} of {found['questions']} answers are the same. Of {found['yes_no']} yes/no "
        f"questions right over the base with the hash {right}."
    )


def _part(name: str) -> Any:
    return read(EXPERIMENTS).get(name) if (ROOT / EXPERIMENTS).is_file() else None


def _yes_no(answers: Mapping[str, Any]) -> str:
    """A row per condition, the splits side by side."""
    splits = [split for split in answers["plain"]["splits"] if split != "all"]
    head = ["", *(f"{split}: right" for split in splits), "present", "absent", "changed"]
    rows = []
    for label, condition in answers.items():
        given = condition["splits"]
        last = given[splits[-1]]
        rows.append(
            [
                label,
                *(estimate(given[split]["accuracy"], 1, 100) for split in splits),
                *(_percent(last[name]) for name in ("present", "absent")),
                _changed(condition),
            ]
        )
    note = f"Present and absent: of the {splits[-1]} split. In percent, with 95 % intervals."
    return f"{table(head, rows)}\n\n{note}"


def _changed(condition: Mapping[str, Any]) -> str:
    return "" if condition["changed"] is None else f"{condition['changed']} of {condition['asked']}"


def _heads(scored: Iterable[Any], show: Any) -> str:
    return ", ".join(f"{layer}.{head} ({show(score)})" for layer, head, score in scored)


def _percent(share: float) -> str:
    return f"{number(100 * share, 1)} %"
