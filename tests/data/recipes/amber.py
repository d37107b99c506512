"""AMBER: scenes, questions and answers of our own, and what its script counts in them, in loops."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Objects and the words that also mean them.
RELATION = {
    "sky": [],
    "grass": ["ground"],
    "road": ["path", "street", "ground"],
    "person": ["man", "woman"],
    "dog": [],
    "cat": ["kitten"],
    "table": ["desk"],
    "cup": [],
    "cloud": [],
    "line": [],
}
OTHERS = [word for words in RELATION.values() for word in words]
SAFE = ("line", "shoe")
KINDS = {
    "discriminative-hallucination": "Exsitence",  # the script's spelling
    "discriminative-attribute-state": "State",
    "discriminative-attribute-number": "Number",
    "discriminative-attribute-action": "Action",
    "discriminative-relation": "Relation",
    "relation": "Relation",
}
ATTRIBUTES = ("State", "Number", "Action")
TINY = 0.001


def described(scenes: Iterable[tuple[list[str], list[str], list[str]]]) -> dict[str, float]:
    """The figures of (present, hallucinated, nouns of the description), where only equal words are alike."""
    counted = present = hallucinated = number = TINY
    wrong = covered = claimed = clean = 0
    for truth, absent, nouns in scenes:
        seen, made_up, faults = set(), set(), 0
        words = [word for word in nouns if word in RELATION or word in OTHERS]
        for word in words:
            if word in SAFE:
                continue
            meant = [one for one in truth if word in RELATION[one]] + [one for one in truth if word == one]
            if meant:
                seen.add(truth.index(meant[0]))
                continue
            feared = [one for one in absent if word in RELATION[one]] + [one for one in absent if word == one]
            if feared:
                made_up.add(absent.index(feared[0]))
            faults += 1
        wrong, counted = wrong + faults, counted + len(words)
        covered, present = covered + len(seen), present + len(truth)
        claimed, hallucinated = claimed + len(made_up), hallucinated + len(absent)
        clean, number = clean + (faults == 0), number + 1
    return {
        "CHAIR": round(100 * wrong / counted, 1),
        "Cover": round(100 * covered / present, 1),
        "Hal": round(100 - 100 * clean / number, 1),
        "Cog": round(100 * claimed / hallucinated, 1),
    }


def answered(
    rows: list[tuple[str, str, str]], kinds: Iterable[str], start: float, end: float
) -> dict[str, float]:
    """The figures of (kind, right answer, answer): "No" is what is looked for.

    Args:
        start: of the denominators. end: added to that of F1.
    """
    chosen = [(truth, answer) for kind, truth, answer in rows if kind in kinds]
    right = sum(answer == truth.title() for truth, answer in chosen)
    noes = sum(truth == "no" for truth, _ in chosen)
    said = sum(answer == "No" for _, answer in chosen)
    found = sum(answer == "No" and truth == "no" for truth, answer in chosen)
    precision, recall = (round(100 * found / (number + start), 1) for number in (said, noes))
    part, whole = precision / 100, recall / 100  # of the figures as they are printed
    return {
        "Accuracy": round(100 * right / (len(chosen) + start), 1),
        "Precision": precision,
        "Recall": recall,
        "F1": round(100 * 2 * part * whole / (part + whole + end), 1),
    }


def printed(rows: list[tuple[str, str, str]], task: str) -> dict[str, dict[str, float]]:
    """The sections that the script prints for an evaluation type."""
    sections = {}
    if task == "d":
        sections["Descriminative Task"] = answered(rows, set(KINDS.values()), TINY, 0.0001)
    if task in ("d", "de"):
        sections["Exsitence"] = answered(rows, ["Exsitence"], TINY, 0.001)
    if task in ("d", "da"):
        sections["Attribute"] = answered(rows, ATTRIBUTES, 3 * TINY, 0.0001)
        sections |= {kind: answered(rows, [kind], TINY, 0.0001) for kind in ATTRIBUTES}
    if task in ("d", "dr"):
        sections["Relation"] = answered(rows, ["Relation"], TINY, 0.0001)
    return sections


def write(folder: Path) -> None:
    """The published files, answers to them, and what is expected of those."""
    draw = random.Random(11)
    annotations: list[dict[str, Any]] = []
    queries, nouns, replies, scenes, rows = [], [], [], [], []
    for number in range(1, 16):
        objects = draw.sample(sorted(RELATION), 7)
        truth, absent = objects[:4], objects[4:]
        words = draw.choices([*RELATION, *OTHERS, "shoe", "tree"], k=draw.randint(0, 9))
        annotations.append({"id": number, "type": "generative", "truth": truth, "hallu": absent})
        queries.append({"id": number, "image": f"AMBER_{number}.jpg", "query": "Describe this image."})
        nouns.append({"id": number, "nouns": words})
        scenes.append((truth, absent, words))
    for number in range(16, 136):
        kind, truth = draw.choice(list(KINDS)), draw.choice(["yes", "no"])
        answer = draw.choice([truth.title(), truth.title(), "Yes", "No", "yes", "No."])
        annotations.append({"id": number, "type": kind, "truth": truth})
        queries.append({"id": number, "image": f"AMBER_{number % 15 + 1}.jpg", "query": f"Is it {number}?"})
        replies.append({"id": number, "response": answer})
        rows.append((KINDS[kind], truth, answer))
    content = {task: printed(rows, task) for task in ("d", "de", "da", "dr")}
    for answer in ("Yes", "No"):
        same = [(kind, truth, answer) for kind, truth, _ in rows]
        content[f"all_{answer}_d"] = printed(same, "d")
    content["g_exact"] = {"Generative Task": described(scenes)}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    files = {
        "data/annotations.json": annotations,
        "data/query_all.json": queries,
        "data/relation.json": RELATION,
        "generative.nouns.json": nouns,
        "discriminative.responses.json": replies,
        "object_vocabulary.json": sorted({*RELATION, *OTHERS}),
        "expected.json": content,
    }
    for name, each in files.items():
        (folder / name).write_text(json.dumps(each) + "\n", encoding="utf-8")
    (folder / "data/safe_words.txt").write_text("\n".join(SAFE), encoding="utf-8")
