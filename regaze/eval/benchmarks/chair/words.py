"""From a caption to the COCO objects it names, as CHAIR's scorers do it.

A caption becomes tokens, tokens become base forms, double words are joined, and what then stands in the
synonym list is an object. Base forms are where the scorers in circulation differ:

* `pattern_forms`: CLiPS Pattern's singular of every token (the original script and its stand-alone port). It
  cuts the final s of nearly everything: a "bus" is a "bu" and is never counted, "buses" are.
* `wordnet_forms`: WordNet's lemma for the part of speech that NLTK tags (OPERA's copy, which most papers on
  large models use). It loses "men", and plurals that WordNet does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import language

# Written as one word, as the list of synonyms has it.
_JOINED = """motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light,
fire hydrant, stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket,
wine glass, hot dog, cell phone, mobile phone, teddy bear, hair drier, potted plant, laptop computer,
stove top oven, home plate, train track"""
# Counted as their last word, so that a baby elephant is no person.
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

#: Two base forms -> what they are together.
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


@dataclass(frozen=True)
class Mention:
    """An object word of a caption: its base form, its COCO category, the number of the token it stands at."""

    word: str
    category: str
    token: int


class Reader(Hashable, Protocol):
    """Finds objects in captions."""

    def read(self, caption: str) -> tuple[list[Mention], list[str]]:
        """(objects in the order in which they are named, the words that were looked at)."""


@dataclass(frozen=True, eq=False)
class ObjectWords:
    """Finds COCO objects in captions.

    Attributes:
        synonyms: word -> category.
        forms: the base forms of a caption's tokens.
    """

    synonyms: Mapping[str, str]
    forms: Callable[[str], list[str]]

    def read(self, caption: str) -> tuple[list[Mention], list[str]]:
        """(objects in the order in which they are named, base forms of the caption with double words joined).

        Where "toilet" and "seat" both occur the seat is no object, and the objects behind it get the token
        numbers of what stood before them, as in the official scorers.
        """
        words, places = join_double_words(self.forms(caption))
        kept = words
        if "toilet" in words and "seat" in words:
            kept = [word for word in words if word != "seat"]
        numbered = zip(kept, places, strict=False)
        return [
            Mention(word, self.synonyms[word], at) for word, at in numbered if word in self.synonyms
        ], words


@dataclass(frozen=True, eq=False)
class ClosedVocabulary:
    """Finds the words of a list in captions that use no others, the longest first: "hot dog" is no dog."""

    vocabulary: tuple[str, ...]
    _pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        words = sorted(map(re.escape, self.vocabulary), key=len, reverse=True)
        object.__setattr__(self, "_pattern", re.compile(rf"\b({'|'.join(words)})\b|\w+"))

    def read(self, caption: str) -> tuple[list[Mention], list[str]]:
        """(objects in the order in which they are named, the words of the caption)."""
        found = list(self._pattern.finditer(caption.lower()))
        mentions = [Mention(each[1], each[1], at) for at, each in enumerate(found) if each[1]]
        return mentions, [each[0] for each in found]


def join_double_words(words: Sequence[str]) -> tuple[list[str], list[int]]:
    """(words with pairs of DOUBLE_WORDS joined from the left, the number of each one's first word)."""
    joined, places, at = list[str](), list[int](), 0
    while at < len(words):
        pair = DOUBLE_WORDS.get(" ".join(words[at : at + 2]))
        joined.append(words[at] if pair is None else pair)
        places.append(at)
        at += 1 if pair is None else 2
    return joined, places


def read_synonyms(path: Path) -> dict[str, str]:
    """{word: category} of the official synonyms.txt: a category per line, then its synonyms.

    Spaces inside an entry are kept as they are, also those in front that make it match nothing.

    Raises:
        InputError: no such file, or an empty line in it.
    """
    table: dict[str, str] = {}
    for number, line in enumerate(files.read_text(path).rstrip("\n").split("\n"), start=1):
        words = line.strip().split(", ")
        if not words[0]:
            raise InputError(f"{path}:{number}: expected a category and its synonyms, got an empty line")
        table.update(dict.fromkeys(words, words[0]))
    return table
