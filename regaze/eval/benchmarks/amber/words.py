"""Which nouns of a description AMBER counts, and which objects of the image they name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from regaze.eval.benchmarks.amber.similarity import Similarity
from regaze.eval.benchmarks.common import language


@dataclass(frozen=True)
class AnnotatedObjects:
    """Annotation of an image: objects that are present, and objects that models tend to hallucinate."""

    truth: tuple[str, ...]
    hallucinations: tuple[str, ...]


@dataclass(frozen=True)
class NounMatch:
    """The nouns of one description, compared with the annotation.

    Attributes:
        nouns: The counted nouns, in order.
        wrong: Those that are hallucinated.
        covered: Which words of `AnnotatedObjects.truth` are named.
        claimed: Which words of `AnnotatedObjects.hallucinations` are named.
    """

    nouns: tuple[str, ...]
    wrong: tuple[str, ...]
    covered: tuple[bool, ...]
    claimed: tuple[bool, ...]


@lru_cache(maxsize=1 << 15)
def caption_nouns(caption: str) -> tuple[str, ...]:
    """Lemma of every word that NLTK tags as a noun; not lower-cased, as in the official script."""
    tagged = language.tagged(language.tokens(caption))
    return tuple(language.lemma(word) for word, tag in tagged if tag.startswith("NN"))


@dataclass(frozen=True, eq=False)
class NounMatcher:
    """Compares the nouns of a description with an annotation, as AMBER does.

    Attributes:
        associations: object -> words that also mean it. Nouns that are neither are ignored.
        safe: Words that are counted but never wrong.
        similar: Whether two words mean the same.
        nouns: Extracts the nouns of a description.
    """

    associations: Mapping[str, Sequence[str]]
    safe: frozenset[str]
    similar: Similarity
    nouns: Callable[[str], Sequence[str]] = caption_nouns

    def vocabulary(self) -> set[str]:
        """Every word that can be counted."""
        return {*self.associations, *(word for words in self.associations.values() for word in words)}

    def match(self, objects: AnnotatedObjects, caption: str) -> NounMatch:
        """Which nouns are correct, which are wrong, and which annotated objects they name.

        A noun that is a present object, or associated with one, is correct and covers the first such object.
        Any other noun claims the first annotated hallucination that it equals and the first that it is
        similar to; it is wrong unless it is similar to a present object.
        """
        vocabulary = self.vocabulary()
        truth, hallucinations = self._entries(objects.truth), self._entries(objects.hallucinations)
        covered, claimed = [False] * len(objects.truth), [False] * len(objects.hallucinations)
        nouns = tuple(noun for noun in self.nouns(caption) if noun in vocabulary)
        wrong = []
        for noun in nouns:
            if noun in self.safe or _mark_first(covered, truth, noun.__eq__):
                continue
            is_similar = partial(self.similar, noun)
            _mark_first(claimed, hallucinations, noun.__eq__)
            _mark_first(claimed, hallucinations, is_similar)
            if not _mark_first(covered, truth, is_similar):
                wrong.append(noun)
        return NounMatch(nouns, tuple(wrong), tuple(covered), tuple(claimed))

    def _entries(self, words: Sequence[str]) -> list[tuple[str, int]]:
        """(word, index of the object it means): the associated words of all objects, then the objects."""
        associated = [(other, at) for at, word in enumerate(words) for other in self.associations[word]]
        return associated + [(word, at) for at, word in enumerate(words)]


def _mark_first(marks: list[bool], entries: Iterable[tuple[str, int]], fits: Callable[[str], bool]) -> bool:
    """Mark the object of the first entry that fits; whether there is one."""
    at = next((at for word, at in entries if fits(word)), None)
    if at is not None:
        marks[at] = True
    return at is not None
