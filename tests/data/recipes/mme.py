"""MME: two questions an image, accuracy and accuracy of both, by three ways of reading an answer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes import pope

PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()  # noqa: SIM905
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SAID = ["Yes", "No", "yes", "no.", "Yes, it is.", "No, not at all", "Maybe", "y", "N", " No", "**Yes**"]


def scored(pairs: list[tuple[str, str]], read: Callable[[str], str]) -> tuple[float, dict[str, Any]]:
    """The score of a task, and what it is made of."""
    counts = dict.fromkeys(("TP", "FN", "TN", "FP", "other_num"), 0)
    right = []
    for label, answer in pairs:
        reading = read(answer)
        right.append(reading == label)
        if reading not in ("yes", "no"):
            counts["other_num"] += 1
        elif label == "yes":
            counts["TP" if reading == "yes" else "FN"] += 1
        else:
            counts["TN" if reading == "no" else "FP"] += 1
    both = [right[at] and right[at + 1] for at in range(0, len(right), 2)]
    acc, plus = sum(right) / len(right), sum(both) / len(both)
    score = 100 * acc + 100 * plus
    made = {
        **counts,
        "precision": counts["TP"] / (counts["TP"] + counts["FP"]),
        "recall": counts["TP"] / (counts["TP"] + counts["FN"]),
        "acc": acc,
        "acc_plus": plus,
        "score": score,
    }
    return score, made


def write(folder: Path) -> None:
    """The files of answers and what is expected of them."""
    (folder / "results_dir").mkdir(parents=True, exist_ok=True)
    draw = random.Random(5)
    each: dict[str, list[tuple[str, str]]] = {}
    for task in (*PERCEPTION, *COGNITION):
        rows, pairs = [], []
        for number in range(draw.randint(4, 7)):
            for label, part in (("Yes", "a"), ("No", "b")):
                right, wrong = label, "No" if label == "Yes" else "Yes"
                answer = draw.choice([right, right, wrong, draw.choice(SAID)])
                if number < 2:  # a yes and a no of each kind, so that no ratio is empty
                    answer = right
                rows.append(f"made_{number}.png\tMade question {number}{part}?\t{label}\t{answer}")
                pairs.append((label.lower(), answer))
        (folder / "results_dir" / f"{task}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
        each[task] = pairs

    def totals(scores: dict[str, float]) -> tuple[float, float]:
        perception, cognition = (sum(scores[task] for task in tasks) for tasks in (PERCEPTION, COGNITION))
        return perception, cognition

    official = {task: scored(pairs, pope.mme) for task, pairs in each.items()}
    scores = {task: score for task, (score, _) in official.items()}
    lmms = {task: scored(pairs, pope.mme_lmms)[0] for task, pairs in each.items()}
    kit = {
        task: scored(pairs, lambda answer: pope.words_alone(answer).lower())[0]
        for task, pairs in each.items()
    }
    content = {
        "perception_total": totals(scores)[0],
        "cognition_total": totals(scores)[1],
        "hallucination_subset_total(existence+count+position+color)": sum(scores[t] for t in PERCEPTION[:4]),
        "per_task": {task: made for task, (_, made) in official.items()},
        "lmms_eval_category_scores": lmms,
        "lmms_eval_perception": totals(lmms)[0],
        "lmms_eval_cognition": totals(lmms)[1],
        "vlmevalkit_MME_rating_no_judge": {"perception": totals(kit)[0], "reasoning": totals(kit)[1], **kit},
    }
    (folder / "expected.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
