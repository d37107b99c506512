"""Which nouns of a description AMBER counts, and when two of them mean the same.

Only words of a closed list are ever compared (340 objects and the words associated with them), so a table of
their similarities replaces the word vectors. The official script takes them from spaCy's en_core_web_lg;
other models give other figures (en_core_web_sm has no word vectors at all), so the table's name is part of
the scorer's version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import language

THRESHOLD = 0.8
MODEL = "en_core_web_lg"


@dataclass(frozen=True)
class Similarity:
    """Pairs of words whose similarity exceeds 0.8; a word is similar to itself.

    Attributes:
        name: the vectors that they come from.
        pairs: each as a set of two words.
    """

    name: str
    pairs: frozenset[frozenset[str]]

    def __call__(self, word: str, other: str) -> bool:
        return word == other or frozenset((word, other)) in self.pairs


#: Without vectors: only equal words are similar.
EXACT = Similarity("equal words only", frozenset())


@dataclass(frozen=True)
class Scene:
    """What an annotated image holds: objects that are there, and objects that models are led to claim."""

    truth: tuple[str, ...]
    hallucinations: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What the scorer sees in one description.

    Attributes:
        nouns: the nouns that are counted, in order. wrong: those that are hallucinated.
        covered: which words of the scene's truth are named. claimed: which of its hallucinations are.
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
class AmberWords:
    """AMBER's reading of a description.

    Attributes:
        associations: object -> words that also mean it. Words of neither kind are ignored.
        safe: words that are counted but never wrong.
        similar: whether two words mean the same.
        nouns: the nouns of a description.
    """

    associations: Mapping[str, Sequence[str]]
    safe: frozenset[str]
    similar: Similarity
    nouns: Callable[[str], Sequence[str]] = caption_nouns

    def vocabulary(self) -> set[str]:
        """Every word that can be counted."""
        return {*self.associations, *(word for words in self.associations.values() for word in words)}

    def read(self, scene: Scene, caption: str) -> Reading:
        """Which nouns are right, which are wrong, and what of the scene they name.

        A noun that is in the scene, or associated with what is, is right, and covers the first such object.
        Any other marks the first hallucination that it equals and the first that it is similar to; it is
        wrong unless it is similar to something in the scene.
        """
        vocabulary = self.vocabulary()
        there, claims = self._entries(scene.truth), self._entries(scene.hallucinations)
        covered, claimed = [False] * len(scene.truth), [False] * len(scene.hallucinations)
        nouns = tuple(noun for noun in self.nouns(caption) if noun in vocabulary)
        wrong = []
        for noun in nouns:
            if noun in self.safe or _mark(covered, there, noun.__eq__):
                continue
            resembles = partial(self.similar, noun)
            _mark(claimed, claims, noun.__eq__)
            _mark(claimed, claims, resembles)
            if not _mark(covered, there, resembles):
                wrong.append(noun)
        return Reading(nouns, tuple(wrong), tuple(covered), tuple(claimed))

    def _entries(self, words: Sequence[str]) -> list[tuple[str, int]]:
        """(word, which of `words` it stands for): the associated words of all, then the words themselves."""
        associated = [(other, at) for at, word in enumerate(words) for other in self.associations[word]]
        return associated + [(word, at) for at, word in enumerate(words)]


def _mark(marks: list[bool], entries: Iterable[tuple[str, int]], fits: Callable[[str], bool]) -> bool:
    """Mark what the first fitting entry stands for; whether there was one."""
    at = next((at for word, at in entries if fits(word)), None)
    if at is not None:
        marks[at] = True
    return at is not None


def read_similarity(path: Path) -> Similarity:
    """A table as JSON: [[word, word, similarity], ...], or {"model": name, "pairs": [...]}.

    Pairs that are not in it are not similar.

    Raises:
        InputError: no such file, or an entry that is not two words and a number.
    """
    data = files.read_json(path)
    name, pairs = path.name, data
    if isinstance(data, dict):
        name, pairs = str(data.get("model", path.name)), data.get("pairs")
    if not isinstance(pairs, list):
        raise InputError(f"{path}: expected a list of [word, word, similarity], got {type(pairs).__name__}")
    similar = set()
    for number, pair in enumerate(pairs):
        match pair:
            case [str(word), str(other), int(value) | float(value)]:
                if value > THRESHOLD:
                    similar.add(frozenset((word, other)))
            case _:
                raise InputError(f"{path}: entry {number} must be [word, word, similarity], got {pair!r}")
    return Similarity(name, frozenset(similar))


def spacy_similarity(words: Iterable[str], model: str = MODEL) -> Similarity:
    """The similarities of `words` by a spaCy model that is installed.

    Raises:
        InputError: spaCy or the model is not installed, or the model has no word vectors.
    """
    pairs = frozenset(frozenset(pair) for *pair, value in _spacy_pairs(words, model) if value > THRESHOLD)
    return Similarity(model, pairs)


def write_similarity(path: Path, words: Iterable[str], model: str = MODEL, above: float = 0.5) -> None:
    """Save the table of a spaCy model, for machines without it. Raises InputError as `spacy_similarity`."""
    pairs = [[*pair, round(value, 6)] for *pair, value in _spacy_pairs(words, model) if value > above]
    path.write_text(json.dumps({"model": model, "pairs": pairs}, indent=0), encoding="utf-8")


def _spacy_pairs(words: Iterable[str], model: str) -> list[tuple[str, str, float]]:
    try:
        import spacy
    except ImportError as error:
        raise InputError(
            f"AMBER compares words by spaCy's {model}: pip install spacy and the model, or give the table of "
            "similarities as a file"
        ) from error
    try:
        language_model: Any = spacy.load(model)
    except OSError as error:
        raise InputError(f"spaCy has no model {model!r}: python -m spacy download {model}") from error
    if not language_model.vocab.vectors.n_keys:
        raise InputError(f"spaCy's {model} has no word vectors: its similarities mean nothing")
    docs = {word: language_model(word) for word in sorted(set(words))}
    return [(word, other, float(docs[word].similarity(docs[other]))) for word, other in combinations(docs, 2)]
