"""Questions in CRPE's style about scenes of the demo and the bed, which know the truth."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from regaze.demo import Scene, SceneObject
from regaze.demo.phrases import capitalise, with_article
from regaze.demo.world import CATEGORIES
from regaze.eval.benchmarks.crpe.questions import rotations

#: How much farther apart two things must be along the axis of their relation than along the other one.
_CLEARLY = 2.0


def rows(scenes: Iterable[Scene]) -> Iterator[dict[str, Any]]:
    """Rows as in CRPE's files: what is there and, of a scene's clearest pair, each part of the triplet."""
    number = 0
    for scene in scenes:
        for category, question, options in _questions(scene):
            record = {"image": scene.path.name, "category": category}
            for row in rotations(record, question, options):
                yield {"question_id": number, **row}
                number += 1


def _questions(scene: Scene) -> Iterator[tuple[str, str, list[str]]]:
    """(category, question, options with the right one first)."""
    draw = random.Random(f"crpe/{scene.name}")
    present = [thing.category for thing in scene.objects]
    absent = [name for name in CATEGORIES if name not in present]
    there = max(scene.objects, key=lambda thing: thing.area).category
    yield "exist", "What is in the image?", _things([there, *draw.sample(absent, 3)])
    triplet = clearest_pair(scene.objects)
    if triplet is None:
        return
    subject, relation, other = triplet
    yield "subject", f"What is {relation} the {other}?", _things([subject, *draw.sample(absent, 3)])
    relations = [relation, *(each for each in RELATIONS if each != relation)]
    sentences = [f"The {subject} is {each} the {other}." for each in relations]
    yield "predicate", f"Where is the {subject}?", sentences
    yield "object", f"What is the {subject} {relation}?", _things([other, *draw.sample(absent, 3)])


RELATIONS = ("left of", "right of", "above", "below")


def clearest_pair(things: Sequence[SceneObject]) -> tuple[str, str, str] | None:
    """(subject, relation, object) of the pair farthest apart along one axis and hardly along the other."""
    best: tuple[float, tuple[str, str, str] | None] = (0.0, None)
    for subject in things:
        for other in things:
            x, y = (b - a for a, b in zip(subject.centre, other.centre, strict=True))
            for along, across, relation in ((x, y, RELATIONS[0]), (y, x, RELATIONS[2])):
                if along > max(best[0], _CLEARLY * abs(across)):
                    best = along, (subject.category, relation, other.category)
                if -along > max(best[0], _CLEARLY * abs(across)):
                    opposite = RELATIONS[RELATIONS.index(relation) + 1]
                    best = -along, (subject.category, opposite, other.category)
    return best[1]


def _things(categories: Sequence[str]) -> list[str]:
    return [f"{capitalise(with_article(category))}." for category in categories]
