"""Questions in the style of MME's four hallucination tasks, about the demo's scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from regaze.demo import Scene, SceneObject, scenes
from regaze.demo.phrases import NUMBERS, with_article
from regaze.demo.world import CATEGORIES, COLOURS, co_occurrence
from regaze.errors import InputError

#: A question with the answer yes, and one with the answer no.
QuestionPair = tuple[str, str]


def questions(task: str) -> Iterator[tuple[Path, str, str]]:
    """(image, question, "yes" or "no"), two per suitable scene. Raises InputError for an unknown task."""
    if task not in _TASKS:
        raise InputError(f"the demo has the MME tasks {', '.join(_TASKS)}, not {task!r}")
    for scene in scenes():
        pair = _TASKS[task](scene)
        if pair is not None:
            yield scene.path, pair[0], "yes"
            yield scene.path, pair[1], "no"


def _existence(scene: Scene) -> QuestionPair:
    """The largest object, and the absent one that most often occurs with the others."""
    there = [thing.category for thing in scene.objects]
    expected = co_occurrence().expectation(there)
    absent = max(
        (value, name) for value, name in zip(expected, CATEGORIES, strict=True) if name not in there
    )[1]
    present = max(scene.objects, key=lambda thing: thing.area).category
    return _is_there(present), _is_there(absent)


def _count(scene: Scene) -> QuestionPair:
    """The number of objects, and one more."""
    numbers = [NUMBERS[len(scene.objects) + more].lower() for more in (0, 1)]
    return f"Are there {numbers[0]} objects in the image?", f"Are there {numbers[1]} objects in the image?"


def _position(scene: Scene) -> QuestionPair | None:
    """Left and right of the two objects farthest apart horizontally; None for a single object."""
    ordered = sorted(scene.objects, key=lambda thing: thing.centre[0])
    if len(ordered) < 2:
        return None
    left, right = ordered[0].category, ordered[-1].category
    return f"Is the {left} on the left of the {right}?", f"Is the {left} on the right of the {right}?"


def _color(scene: Scene) -> QuestionPair | None:
    """The colour of an object, and another colour; None if no object has one."""
    coloured: SceneObject | None = next((thing for thing in scene.objects if thing.colour), None)
    if coloured is None or coloured.colour is None:
        return None
    others = [*COLOURS, *COLOURS]
    other = others[others.index(coloured.colour) + 1]
    return _is_there(f"{coloured.colour} {coloured.category}"), _is_there(f"{other} {coloured.category}")


def _is_there(noun: str) -> str:
    return f"Is there {with_article(noun)} in the image?"


_TASKS: dict[str, Callable[[Scene], QuestionPair | None]] = {
    "existence": _existence,
    "count": _count,
    "position": _position,
    "color": _color,
}
