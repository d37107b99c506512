"""AMBER's tasks on scenes of the demo and the bed, which know the truth.

Descriptions: the nouns are words of the closed list of categories, the annotated hallucinations the three
absent categories that most often occur with the present ones. Of the questions as many have the answer yes as
no; nothing in a drawn scene acts, so none is about actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from regaze.demo.shipped import Scene
from regaze.demo.world import CATEGORIES
from regaze.eval.benchmarks.amber.scorers import Reference, YesNoReference
from regaze.eval.benchmarks.amber.similarity import EXACT
from regaze.eval.benchmarks.amber.words import AnnotatedObjects, NounMatcher
from regaze.eval.benchmarks.common import drawn_pairs
from regaze.eval.benchmarks.common.vocabulary import ClosedVocabulary

DESCRIBE = "Describe this image."
_PAIRS: dict[str, Callable[[Scene], drawn_pairs.QuestionPair | None]] = {
    "existence": drawn_pairs.existence,
    "state": drawn_pairs.color,
    "number": drawn_pairs.count,
    "relation": partial(drawn_pairs.position, side="to the {} of"),
}


def questions(scenes: Iterable[Scene]) -> Iterator[tuple[Path, str, Reference]]:
    """(image, question, reference) of all tasks, scene by scene."""
    for scene in scenes:
        present = tuple(thing.category for thing in scene.objects)
        yield scene.path, DESCRIBE, AnnotatedObjects(present, tuple(drawn_pairs.expected_absent(scene, 3)))
        for kind, make in _PAIRS.items():
            for text, negative in zip(make(scene) or (), (False, True), strict=False):
                yield scene.path, text, YesNoReference(kind, negative)


def matcher() -> NounMatcher:
    """Finds the categories in descriptions."""
    reader = ClosedVocabulary(CATEGORIES)

    def nouns(caption: str) -> list[str]:
        return [mention.category for mention in reader.read(caption)[0]]

    return NounMatcher(dict.fromkeys(CATEGORIES, ()), frozenset(), EXACT, nouns)
