"""Multiple-choice questions in MMStar's three shapes about drawn scenes, which know the truth."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from regaze.demo import Scene
from regaze.demo.phrases import NUMBERS, PLACES, capitalise, place, with_article
from regaze.demo.world import CATEGORIES, COLOURS
from regaze.eval.benchmarks.mmstar.questions import LETTERS, SHAPES, join_options

#: A question, the right option, and wrong ones (at least three).
Choice = tuple[str, str, Sequence[str]]


def questions(scenes: Iterable[Scene]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(image, record as in MMStar's files), one question per scene: its kinds and shapes take turns.

    With a question per image the answers are independent of each other, so that few of them say most.
    """
    kinds = list(_KINDS.items())
    for number, scene in enumerate(scenes):
        draw = random.Random(f"mmstar/{scene.name}")
        turn = kinds[number % len(kinds) :] + kinds[: number % len(kinds)]
        made = ((kind, make(scene, draw)) for kind, make in turn)
        (category, subcategory), (question, right, wrong) = next((k, c) for k, c in made if c is not None)
        options = [right, *draw.sample(list(wrong), 3)]
        draw.shuffle(options)
        text = join_options(question, options, SHAPES[number % len(SHAPES)])
        yield (
            scene.path,
            {
                "index": number,
                "question": text,
                "answer": LETTERS[options.index(right)],
                "category": category,
                "l2_category": subcategory,
            },
        )


def _object(scene: Scene, draw: random.Random) -> Choice | None:
    """Which object is at a place with exactly one."""
    places = [place(thing) for thing in scene.objects]
    alone = [thing for thing in scene.objects if places.count(place(thing)) == 1]
    if not alone:
        return None
    thing = max(alone, key=lambda each: each.area)
    names = {each.category for each in scene.objects}
    absent = [_sentence(name) for name in CATEGORIES if name not in names]
    return f"What is {place(thing)} of the image?", _sentence(thing.category), absent


def _colour(scene: Scene, draw: random.Random) -> Choice | None:
    """The colour of the largest object that has one."""
    coloured = [thing for thing in scene.objects if thing.colour]
    if not coloured:
        return None
    thing = max(coloured, key=lambda each: each.area)
    others = [capitalise(colour) for colour in COLOURS if colour != thing.colour]
    return f"What color is the {thing.category}?", capitalise(thing.colour or ""), others


def _place(scene: Scene, draw: random.Random) -> Choice | None:
    """Where the largest object is: left or right, above or below."""
    thing = max(scene.objects, key=lambda each: each.area)
    right = place(thing)
    others = [f"The {thing.category} is {where}." for where in PLACES if where != right]
    return f"Where is the {thing.category}?", f"The {thing.category} is {right}.", others


def _count(scene: Scene, draw: random.Random) -> Choice:
    """The number of objects."""
    number = len(scene.objects)
    others = [NUMBERS[each] for each in range(1, 6) if each != number]
    return "How many objects are there in the image?", NUMBERS[number], others


def _sentence(category: str) -> str:
    return f"{capitalise(with_article(category))}."


#: (category, sub-category) -> what makes a question of a scene
_KINDS: dict[tuple[str, str], Callable[[Scene, random.Random], Choice | None]] = {
    ("recognition", "object"): _object,
    ("recognition", "colour"): _colour,
    ("position", "place"): _place,
    ("counting", "number of objects"): _count,
}
