"""Questions in the style of MME's four hallucination tasks, about scenes of the demo and the bed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from regaze.demo import Scene
from regaze.errors import InputError
from regaze.eval.benchmarks.common import drawn_pairs

_TASKS: dict[str, Callable[[Scene], drawn_pairs.QuestionPair | None]] = {
    "existence": drawn_pairs.existence,
    "count": drawn_pairs.count,
    "position": drawn_pairs.position,
    "color": drawn_pairs.color,
}


def questions(task: str, scenes: Iterable[Scene]) -> Iterator[tuple[Path, str, str]]:
    """(image, question, "yes" or "no"), two per suitable scene. Raises InputError for an unknown task."""
    if task not in _TASKS:
        raise InputError(f"drawn scenes have the MME tasks {', '.join(_TASKS)}, not {task!r}")
    for scene in scenes:
        pair = _TASKS[task](scene)
        if pair is not None:
            yield scene.path, pair[0], "yes"
            yield scene.path, pair[1], "no"
