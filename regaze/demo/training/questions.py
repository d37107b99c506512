"""Build POPE question files by the rule of the official builder (Li et al., EMNLP 2023, "Evaluating Object
Hallucination in Large Vision-Language Models").

Each image's objects are asked for in order, every positive question followed by one about an absent object:

* ``random``: any absent object;
* ``popular``: the most frequent object of the data set that is absent and not yet asked for;
* ``adversarial``: the absent object, not yet asked for, that most often meets the object of the positive
  question.

The official files hold 3 positives per image and skip images with fewer objects. Here an image with one or
two objects is asked two or four questions, so that small scenes count too. The official builder's spelling
"imange" is not kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from regaze.demo.phrases import existence_question

SPLITS = ("random", "popular", "adversarial")


def co_occurrence_ranking(images: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """For every object the objects it meets, most frequent partner first (ties: first met first)."""
    met: dict[str, Counter[str]] = {}
    for objects in images:
        for name in objects:
            met.setdefault(name, Counter()).update(other for other in objects if other != name)
    return {name: [other for other, _ in counter.most_common()] for name, counter in met.items()}


def popularity_ranking(images: Sequence[Sequence[str]]) -> list[str]:
    """Objects by the number of images that hold them, most frequent first (ties: first seen first)."""
    return [name for name, _ in Counter(name for objects in images for name in objects).most_common()]


def pope_questions(
    names: Sequence[str],
    images: Sequence[Sequence[str]],
    split: str,
    rng: np.random.Generator,
    positives: int = 3,
    skip_small: bool = False,
) -> list[dict]:
    """POPE questions for a data set.

    Args:
        names: file name of each image.
        images: the distinct objects of each image, in order.
        split: "random", "popular" or "adversarial".
        rng: draws the random negatives.
        positives: positive questions per image at most.
        skip_small: leave out images with fewer than ``positives`` objects, as the official builder does.

    Returns:
        Entries ``{"question_id", "image", "text", "label"}``, ids from 1, labels alternating yes, no.

    Raises:
        ValueError: ``split`` is none of the three.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    popular, partners = popularity_ranking(images), co_occurrence_ranking(images)
    entries: list[dict] = []

    def ask(image: str, category: str, label: str) -> None:
        question = existence_question(category)
        entries.append({"question_id": len(entries) + 1, "image": image, "text": question, "label": label})

    for image, objects in zip(names, images, strict=True):
        if skip_small and len(objects) < positives:
            continue
        asked = set(objects)
        for category in objects[:positives]:
            ranking = {"random": [], "popular": popular, "adversarial": partners[category]}[split]
            negative = next((name for name in ranking if name not in asked), None)
            if negative is None:
                free = [name for name in popular if name not in asked]
                negative = free[int(rng.integers(len(free)))]
            asked.add(negative)
            ask(image, category, "yes")
            ask(image, negative, "no")
    return entries


def write_jsonl(path: Path, entries: Iterable[dict]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
