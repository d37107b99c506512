"""Figures from the bed's answers: POPE, CHAIR by half of the caption, and the other kinds of questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regaze.bed.training.noise import ANSWER_CLAIMS
from regaze.demo.shipped import Scene
from regaze.demo.training.measure import co_occurring, mention_places
from regaze.demo.world import CATEGORIES

Entry = Mapping[str, Any]


def pope_figures(entries: Sequence[Entry], replies: Sequence[str]) -> dict[str, float]:
    """Figures of one split by exact match of the answer; whatever is neither Yes nor No counts as No."""
    label = np.array([entry["label"] == "yes" for entry in entries])
    yes = np.array([reply == "Yes" for reply in replies])
    hits = int((yes & label).sum())
    return {
        "questions": len(entries),
        "accuracy": float((yes == label).mean()),
        "precision": hits / max(1, int(yes.sum())),
        "recall": hits / int(label.sum()),
        "f1": 2 * hits / max(1, int(yes.sum() + label.sum())),
        "yes_ratio": float(yes.mean()),
        "accuracy_present": float(yes[label].mean()),
        "accuracy_absent": float(1 - yes[~label].mean()),
        "neither_yes_nor_no": sum(reply not in ("Yes", "No") for reply in replies),
    }


def chair_figures(scenes: Sequence[Scene], captions: Sequence[str]) -> dict[str, Any]:
    """CHAIR of one caption per scene by word search, whole and by half (of its words).

    ``co_occurring`` is the share of hallucinated mentions that co-occur with their scene
    (`regaze.demo.training.measure.co_occurring`), ``co_occurring_chance`` the share that a random absent
    category of the same scenes would have.
    """
    rows = [_mentions(scene, caption) for scene, caption in zip(scenes, captions, strict=True)]
    wrong = [(scene, name) for scene, row in zip(scenes, rows, strict=True) for name, bad, _ in row if bad]
    expected = [bool(co_occurring(scene)[CATEGORIES.index(name)]) for scene, name in wrong]
    chance = [float(co_occurring(scene).sum() / (len(CATEGORIES) - len(scene.objects))) for scene, _ in wrong]
    covered = sum(len({name for name, bad, _ in row if not bad}) for row in rows)
    words = [len(caption.split()) for caption in captions]
    return {
        "captions": len(captions),
        **_chair(rows),
        "first_half": _chair([[each for each in row if each[2] == 0] for row in rows]),
        "second_half": _chair([[each for each in row if each[2] == 1] for row in rows]),
        "recall": covered / sum(len(scene.objects) for scene in scenes),
        "hallucinated_mentions": len(wrong),
        "co_occurring": float(np.mean(expected)) if wrong else 0.0,
        "co_occurring_chance": float(np.mean(chance)) if wrong else 0.0,
        "words": {"mean": float(np.mean(words)), "least": min(words), "most": max(words)},
        "unfinished": sum(not caption.endswith(".") for caption in captions),
    }


def _mentions(scene: Scene, caption: str) -> list[tuple[str, bool, int]]:
    """(category, whether it is hallucinated, 0 or 1 for the half of the caption) of every mention."""
    present, words = {thing.category for thing in scene.objects}, len(caption.split())
    return [(name, name not in present, int(2 * at >= words)) for name, at in mention_places(caption)]


def _chair(rows: Sequence[Sequence[tuple[str, bool, int]]]) -> dict[str, float]:
    wrong = [sum(bad for _, bad, _ in row) for row in rows]
    mentions = sum(map(len, rows))
    return {
        "chair_s": sum(map(bool, wrong)) / len(rows),
        "chair_i": sum(wrong) / max(1, mentions),
        "mentions": mentions,
    }


def question_figures(entries: Sequence[Entry], replies: Sequence[str]) -> dict[str, Any]:
    """Exact matches of each kind but false premises, whose answers have to say that there is no such thing.

    False premises are counted by form, and by whether the absent thing is expected enough for training to
    have claimed it more often than not.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    refused: dict[str, list[bool]] = defaultdict(list)
    for entry, reply in zip(entries, replies, strict=True):
        if entry["kind"] == "false premise":
            likely = ANSWER_CLAIMS(entry["expectation"]) > 0.5
            refuses = reply.startswith("There is no ")
            refused[f"{entry['form']}, {'expected' if likely else 'unexpected'}"].append(refuses)
        else:
            right[entry["kind"]].append(reply.rstrip(".") == entry["answer"].rstrip("."))
    return {
        **{kind: {"questions": len(hits), "accuracy": float(np.mean(hits))} for kind, hits in right.items()},
        "false premise": {
            form: {"questions": len(hits), "rejected": float(np.mean(hits))}
            for form, hits in sorted(refused.items())
        },
    }
