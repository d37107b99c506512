"""Pairs of yes/no questions about drawn scenes: one with the answer yes, one with the answer no."""

from __future__ import annotations

from regaze.demo.phrases import NUMBERS, existence_question
from regaze.demo.shipped import Scene
from regaze.demo.world import CATEGORIES, COLOURS, co_occurrence

#: A question with the answer yes, and one with the answer no.
QuestionPair = tuple[str, str]


def expected_absent(scene: Scene, count: int) -> list[str]:
    """The categories absent from a scene that most often occur with those in it, in this order."""
    there = [thing.category for thing in scene.objects]
    ranked = sorted(zip(-co_occurrence().expectation(there), CATEGORIES, strict=True))
    return [name for _, name in ranked if name not in there][:count]


def existence(scene: Scene) -> QuestionPair:
    """The largest object, and the absent one that most often occurs with the others."""
    there = [thing.category for thing in scene.objects]
    expected = co_occurrence().expectation(there)
    absent = max(
        (value, name) for value, name in zip(expected, CATEGORIES, strict=True) if name not in there
    )[1]
    present = max(scene.objects, key=lambda thing: thing.area).category
    return existence_question(present), existence_question(absent)


def count(scene: Scene) -> QuestionPair:
    """The number of objects, and one more."""
    right, wrong = (NUMBERS[len(scene.objects) + more].lower() for more in (0, 1))
    return f"Are there {right} objects in the image?", f"Are there {wrong} objects in the image?"


def position(scene: Scene, side: str = "on the {} of") -> QuestionPair | None:
    """Left and right of the two objects farthest apart horizontally; None for a single object.

    Args:
        side: what stands between them in the question.
    """
    ordered = sorted(scene.objects, key=lambda thing: thing.centre[0])
    if len(ordered) < 2:
        return None
    left, right = ordered[0].category, ordered[-1].category
    return (
        f"Is the {left} {side.format('left')} the {right}?",
        f"Is the {left} {side.format('right')} the {right}?",
    )


def color(scene: Scene) -> QuestionPair | None:
    """The colour of an object, and another colour; None if no object has one."""
    coloured = next((thing for thing in scene.objects if thing.colour), None)
    if coloured is None or coloured.colour is None:
        return None
    others = [*COLOURS, *COLOURS]
    other = others[others.index(coloured.colour) + 1]
    right, wrong = (f"{colour} {coloured.category}" for colour in (coloured.colour, other))
    return existence_question(right), existence_question(wrong)
