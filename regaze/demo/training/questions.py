"""POPE question files by the rule of the official builder.

Source: Li et al., EMNLP 2023, "Evaluating Object Hallucination in Large Vision-Language Models".

The questions go through the objects of an image in order; after each comes one about an absent object:

* ``random``: any absent object;
* ``popular``: the most frequent absent object of the data set that has had no question;
* ``adversarial``: the absent object without a question that co-occurs most with the object of the positive
  question.

The official files hold 3 positives per image and skip images with fewer objects. Here an image with one or
two objects has two or four questions, so that small scenes count too. The official builder's spelling
"imange" is corrected.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from regaze.demo.phrases import existence_question
from regaze.writing import replace_file

SPLITS = ("random", "popular", "adversarial")


def co_occurrence_ranking(images: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """For every object its co-occurring objects, the most frequent first (ties: first seen first)."""
    partners: dict[str, Counter[str]] = {}
    for objects in images:
        for name in objects:
            partners.setdefault(name, Counter()).update(other for other in objects if other != name)
    return {name: [other for other, _ in counter.most_common()] for name, counter in partners.items()}


def popularity_ranking(images: Sequence[Sequence[str]]) -> list[str]:
    """Objects by the number of images that contain them, the most frequent first (ties: first seen first)."""
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
        positives: largest number of positive questions per image.
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

    def add(image: str, category: str, label: str) -> None:
        question = existence_question(category)
        entries.append({"question_id": len(entries) + 1, "image": image, "text": question, "label": label})

    for image, objects in zip(names, images, strict=True):
        if skip_small and len(objects) < positives:
            continue
        used = set(objects)
        for category in objects[:positives]:
            ranking = {"random": [], "popular": popular, "adversarial": partners[category]}[split]
            negative = next((name for name in ranking if name not in used), None)
            if negative is None:
                free = [name for name in popular if name not in used]
                negative = free[int(rng.integers(len(free)))]
            used.add(negative)
            add(image, category, "yes")
            add(image, negative, "no")
    return entries


def write_jsonl(path: Path, entries: Iterable[dict]) -> None:
    """One JSON object per line."""
    replace_file(path, "".join(json.dumps(entry) + "\n" for entry in entries))
