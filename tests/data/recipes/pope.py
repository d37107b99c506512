"""POPE: how each script reads an answer, what it counts, and how its questions are built.

The rules are those that the scripts' own pages and outputs show; every script is a few lines of loops here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Answers with a bar between, and those that begin or end with a space or mark.
_PLAIN = (
    "Yes|No|yes|no|YES|NO|Yes.|No.|yes.|no,|.|Yes, there is.|No, there is not.|Yes there is a cup.|"
    "No there isn't|There is a dog.|There is no dog|There isn't one.|there aren't any dogs|"
    "I do not see it.|I can not say|I cannot see a cup|Not at all|not sure|Maybe|perhaps.|"
    "I know it is there|Nothing|nobody|Yes and no|No, yes|Yes. No.|No. Yes.|The answer is yes|"
    "The answer is no.|Answer: Yes|Answer: No|(Yes)|(no)|**Yes**|**No**|'no'|Yes!|No!|Yes?|"
    "No; it is gone|yes: a dog|no - none|Y|N|y|n|yeah|nope|Yep.|Nah|A snowboard|one|noon|eyes|"
    "Yes, I can see a dog, and a cat.|In this image, no dog is shown.|ye s|n o|yes yes|no no|Yes,no|"
    "No,yes|. No|. Yes|1|0|true|false|不|Ja|Oui, non|certainly|of course not|It isn't.|it ISN'T|"
    "can't tell|Yes, but not now.|no.yes|yes.no|No;|Yes;|NO.|YES.|nO|yEs|The image does not show a cup.|"
    "There's a cup on the table|None.|not|Not.|NOT|no dog|dog, no|yes dog"
)
_SPECIAL = [" Yes", "No ", "\tyes\n", "No\n", "", " ", '"yes"']
ANSWERS = [*_PLAIN.split("|"), *_SPECIAL]
MARKS = ';/[]"{}()=+\\_-><@`,?!'


def official(answer: str) -> str:
    """Before the first full stop, commas dropped: No, no or not among the words at single spaces is a no."""
    first = answer[: answer.index(".")] if "." in answer else answer
    return "no" if any(word in ("No", "not", "no") for word in first.replace(",", "").split(" ")) else "yes"


def opera(answer: str) -> str:
    """The whole text; NO and words in n't, too."""
    for word in answer.replace(".", "").replace(",", "").split(" "):
        if word in ("No", "not", "no", "NO") or word[-3:] == "n't":
            return "no"
    return "yes"


def vcd(answer: str, label: str) -> str:
    """The label, if it is anywhere in the answer; else the other."""
    other = "no" if label == "yes" else "yes"
    return label if label in answer.lower() else other


def exact(answer: str) -> str:
    """lmms-eval."""
    return answer.lower().strip()


def words_alone(answer: str) -> str:
    """VLMEvalKit without a judge: exactly one of the words, after VQA's marks are gone.

    A mark that stands beside a space anywhere in the text is dropped everywhere, another becomes a space;
    full stops that no digit follows are dropped.
    """
    text = kept = answer.lower()
    for mark in MARKS:
        beside = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside else " ")
    letters = [letter for at, letter in enumerate(kept) if letter != "." or kept[at + 1 : at + 2].isdigit()]
    found = {"yes", "no"} & set("".join(letters).split())
    return found.pop().capitalize() if len(found) == 1 else "Unknown"


def mme(answer: str) -> str:
    """MME: one of the words in the first four letters."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_lmms(answer: str) -> str:
    """lmms-eval's, which strips, drops full stops and takes y and n."""
    text = answer.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text, mme(text))


def parsed() -> list[dict[str, Any]]:
    """Every answer as every script reads it."""
    return [
        {
            "answer": answer,
            "pope_official": official(answer),
            "opera": opera(answer),
            "vcd_when_label_yes": vcd(answer, "yes"),
            "vcd_when_label_no": vcd(answer, "no"),
            "vlmevalkit": words_alone(answer),
            "lmms_eval_pope_prediction": exact(answer),
            "lmms_eval_correct_if_yes": float(exact(answer) == "yes"),
            "lmms_eval_correct_if_no": float(exact(answer) == "no"),
            "mme_official": mme(answer),
            "lmms_eval_mme": mme_lmms(answer),
        }
        for answer in dict.fromkeys(ANSWERS)
    ]


def counted(labels: list[str], answers: list[str], read: Callable[[str, str], str]) -> dict[str, int]:
    """TP, FP, TN, FN; what is read as neither counts nowhere."""
    counts = dict.fromkeys(("TP", "FP", "TN", "FN"), 0)
    names = {("yes", "yes"): "TP", ("yes", "no"): "FN", ("no", "yes"): "FP", ("no", "no"): "TN"}
    for label, answer in zip(labels, answers, strict=True):
        if (name := names.get((label, read(answer, label)))) is not None:
            counts[name] += 1
    return counts


def ratio(over: float, under: float, undefined: float | None) -> float | None:
    """A ratio, or what stands for it where nothing is below."""
    return over / under if under else undefined


def figures(counts: dict[str, int], total: int, undefined: float | None = None) -> dict[str, Any]:
    """Accuracy, precision, recall, F1, yes-ratio; a script that divides by zero has an "error" and no F1."""
    precision = ratio(counts["TP"], counts["TP"] + counts["FP"], undefined)
    recall = ratio(counts["TP"], counts["TP"] + counts["FN"], undefined)
    made: dict[str, Any] = {
        "accuracy": (counts["TP"] + counts["TN"]) / total,
        "yes_ratio": (counts["TP"] + counts["FP"]) / total,
        "precision": precision,
        "recall": recall,
    }
    if precision is not None and recall is not None:
        made["f1"] = ratio(2 * precision * recall, precision + recall, undefined)
    stopped = {name for name, value in made.items() if value is None} | ({"f1"} - set(made))
    made = {name: value for name, value in made.items() if value is not None}
    return {**counts, **made, **({"error": "division by zero"} if stopped else {})}


def expected(labels: list[str], answers: list[str]) -> dict[str, dict[str, Any]]:
    """What each script says of the answers."""
    total = len(labels)
    of_pope = figures(counted(labels, answers, lambda answer, _: official(answer)), total)
    of_opera = figures(counted(labels, answers, lambda answer, _: opera(answer)), total)
    of_vcd = figures(counted(labels, answers, vcd), total)
    names = {
        "accuracy": "Accuracy",
        "precision": "Precision",
        "recall": "Recall",
        "f1": "F1",
        "yes_ratio": "yes",
    }
    of_lmms = figures(counted(labels, answers, lambda answer, _: exact(answer)), total, 0.0)
    kit = counted(labels, answers, lambda answer, _: words_alone(answer).lower())
    kit["FN"] += sum(
        label == "yes" and words_alone(answer) == "Unknown"
        for label, answer in zip(labels, answers, strict=True)
    )
    of_kit = figures(kit, total, 0.0)
    percent = {"acc": "accuracy", "precision": "precision", "recall": "recall", "Overall": "f1"}
    return {
        "official_AoiDragon_POPE": of_pope,
        "opera_pope_eval": of_opera,
        "vcd_eval_pope": {names[name]: value for name, value in of_vcd.items() if name in names}
        | ({"error": of_vcd["error"]} if "error" in of_vcd else {}),
        "lmms_eval_pope": {
            **{name: of_lmms[name] for name in ("accuracy", "precision", "recall")},
            "f1_score": of_lmms["f1"],
            "yes_ratio": labels.count("yes") / total,
        },
        "vlmevalkit_POPE_rating_no_judge": {key: 100 * of_kit[name] for key, name in percent.items()},
    }


OBJECTS = "cup dog chair table apple kite oven umbrella bird sofa egg bench car orange bus tie cat owl"


def built(images: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """The questions: the first three objects of an image, each with an absent one behind it."""
    draw = random.Random(20240501)
    frequency: dict[str, int] = {}
    for image in images:
        for name in image["objects"]:
            frequency[name] = frequency.get(name, 0) + 1
    entries: list[dict[str, Any]] = []
    for image in images:
        history = list(image["objects"])
        for present in image["objects"][:3]:
            together: dict[str, int] = {}
            for other in images:
                if present in other["objects"]:
                    for name in other["objects"]:
                        if name != present:
                            together[name] = together.get(name, 0) + 1
            ranks = {"random": {}, "popular": frequency, "adversarial": together}[split]
            ordered = sorted(ranks, key=lambda name, ranks=ranks: -ranks[name])
            free = [name for name in ordered if name not in history]
            absent = free[0] if free else draw.choice(list(frequency))
            while absent in history:
                absent = draw.choice(list(frequency))
            history.append(absent)
            for name, label in ((present, "yes"), (absent, "no")):
                text = (
                    f"Is there an {name} in the imange?"
                    if name[0] in "aeiou"
                    else f"Is there a {name} in the image?"
                )
                entries.append(
                    {"question_id": len(entries) + 1, "image": image["image"], "text": text, "label": label}
                )
    return entries


def write(folder: Path) -> None:
    """All files of POPE."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(3)

    def lines(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def text(name: str, value: Any) -> None:
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

    readings = ",\n".join(json.dumps(row) for row in parsed())
    (folder / "answer_parsing.json").write_text(f'{{"rows": [\n{readings}\n]}}\n', encoding="utf-8")
    cases = {
        "mixed": draw.choices(ANSWERS[:20] + _SPECIAL, k=60),
        "all": list(dict.fromkeys(ANSWERS))[:80],
        "all_yes": ["Yes"] * 12,
        "all_no": ["No"] * 12,
        "all_empty": [""] * 12,
    }
    scores = {}
    for name, answers in cases.items():
        labels = [("yes", "no")[number % 2] for number in range(len(answers))]
        asked = [f"Is there a {draw.choice(OBJECTS.split())} in the image?" for _ in answers]
        rows = [
            {"question_id": number + 1, "image": f"made_{number // 6}.jpg", "text": question, "label": label}
            for number, (question, label) in enumerate(zip(asked, labels, strict=True))
        ]
        lines(f"{name}.questions.jsonl", rows)
        said = [
            {"question_id": row["question_id"], "question": row["text"], "answer": answer}
            for row, answer in zip(rows, answers, strict=True)
        ]
        lines(f"{name}.answers.jsonl", said)
        scores[name] = expected(labels, answers)
    text("expected.json", scores)
    images = [
        {"image": f"made_{number:03d}.jpg", "objects": draw.sample(OBJECTS.split(), draw.randint(3, 8))}
        for number in range(24)
    ]
    lines("build.segmentation.jsonl", images)
    frequency: dict[str, int] = {}
    for image in images:
        for name in image["objects"]:
            frequency[name] = frequency.get(name, 0) + 1
    text("build.expected.json", {"object_frequency": frequency})
    for split in ("random", "popular", "adversarial"):
        lines(f"build.{split}.jsonl", built(images, split))
