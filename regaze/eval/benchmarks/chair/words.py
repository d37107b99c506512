"""COCO objects named in a caption, as CHAIR's scorers find them.

A caption is split into tokens, tokens become base forms, double words are joined, and base forms in the list
of synonyms are objects. The scorers in use differ in the base forms:

* `pattern_forms`: CLiPS Pattern's singular of every token (the original script and its stand-alone port). It
  cuts the final s of nearly everything: "bus" becomes "bu" and is never counted, "buses" are.
* `wordnet_forms`: WordNet's lemma for the part of speech that NLTK tags (OPERA's copy, which most papers on
  large models use). It misses "men", and plurals that WordNet does not know.
* `noun_forms`: WordNet's lemma as a noun (Object HalBench). It misses "men", too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from os import fspath
from typing import Protocol

from regaze.errors import InputError
from regaze.eval.benchmarks.common import language
from regaze.eval.benchmarks.common.vocabulary import Mention
from regaze.reading import StrPath, read_text

# Pairs of words that are one entry of the list of synonyms.
_JOINED = """motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light,
fire hydrant, stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket,
wine glass, hot dog, cell phone, mobile phone, teddy bear, hair drier, potted plant, laptop computer,
stove top oven, home plate, train track"""
# "baby" and "adult" before these are dropped, so that a baby elephant is no person.
_ANIMALS = (
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "animal",
    "cub",
)

#: Two consecutive base forms -> the word they become.
DOUBLE_WORDS: Mapping[str, str] = {
    **{" ".join(words.split()): " ".join(words.split()) for words in _JOINED.split(",")},
    **{f"{age} {animal}": animal for animal in _ANIMALS for age in ("baby", "adult")},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    "bow tie": "tie",
    "toilet seat": "toilet",
    "wine glas": "wine glass",  # what Pattern makes of "glass"
}


def pattern_forms(caption: str) -> list[str]:
    """Singular of every lower-case token. Raises InputError without NLTK, its data, or PatternLite."""
    return [language.singular(token) for token in language.tokens(caption.lower())]


def wordnet_forms(caption: str) -> list[str]:
    """Lemma of every lower-case token. Raises InputError without NLTK or its data."""
    return language.lemmas_by_tag(language.tokens(caption.lower()))


def noun_forms(caption: str) -> list[str]:
    """Lemma of every lower-case token taken as a noun. Raises InputError without NLTK or its data."""
    return [language.lemma(token) for token in language.tokens(caption.lower())]


class ObjectReader(Hashable, Protocol):
    """Finds objects in captions."""

    def read(self, caption: str) -> tuple[list[Mention], list[str]]:
        """(objects in the order in which they are named, base forms of the words of the caption)."""


@dataclass(frozen=True, eq=False)
class SynonymReader:
    """Finds COCO objects in captions by their synonyms.

    Attributes:
        synonyms: word -> category.
        forms: Base forms of a caption's tokens.
        double_words: Two consecutive base forms -> the word they become.
    """

    synonyms: Mapping[str, str]
    forms: Callable[[str], list[str]]
    double_words: Mapping[str, str] = field(default_factory=lambda: DOUBLE_WORDS)

    def read(self, caption: str) -> tuple[list[Mention], list[str]]:
        """(objects in the order in which they are named, base forms of the caption with double words joined).

        If "toilet" and "seat" both occur, the seat is no object, and the objects after it get the token index
        of the word before them, as in the official scorers.
        """
        words, positions = join_double_words(self.forms(caption), self.double_words)
        return self.look_up(words, positions), words

    def look_up(self, words: Sequence[str], positions: Sequence[int]) -> list[Mention]:
        """The objects among base forms, whose first tokens are at `positions`."""
        if "toilet" in words and "seat" in words:
            words = [word for word in words if word != "seat"]
        return [
            Mention(word, self.synonyms[word], at)
            for word, at in zip(words, positions, strict=False)
            if word in self.synonyms
        ]


def join_double_words(
    words: Sequence[str], double_words: Mapping[str, str] = DOUBLE_WORDS
) -> tuple[list[str], list[int]]:
    """(words with pairs of `double_words` joined from the left, index of the first token of each)."""
    joined, positions, at = list[str](), list[int](), 0
    while at < len(words):
        pair = double_words.get(" ".join(words[at : at + 2]))
        joined.append(words[at] if pair is None else pair)
        positions.append(at)
        at += 1 if pair is None else 2
    return joined, positions


def read_synonyms(path: StrPath) -> dict[str, str]:
    """{word: category} of the official synonyms.txt: a category per line, then its synonyms.

    Spaces of an entry stay, also leading ones, with which it matches nothing.

    Raises:
        InputError: The file is missing or has an empty line.
    """
    path = fspath(path)
    table: dict[str, str] = {}
    for number, line in enumerate(read_text(path).rstrip("\n").split("\n"), start=1):
        words = line.strip().split(", ")
        if not words[0]:
            raise InputError(f"{path}:{number}: expected a category and its synonyms, got an empty line")
        table.update(dict.fromkeys(words, words[0]))
    return table
