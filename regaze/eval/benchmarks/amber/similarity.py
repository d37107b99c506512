"""Which words AMBER takes for the same: tables of word similarities.

Only words of a closed list are ever compared (340 objects and the words associated with them), so a table of
their similarities can replace the word vectors. The official script takes the vectors of spaCy's
en_core_web_lg; other models give other figures (en_core_web_sm has no word vectors at all), so the table's
name is part of the scorer's version.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from os import fspath
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval import files
from regaze.reading import StrPath

THRESHOLD = 0.8
SPACY_MODEL = "en_core_web_lg"


@dataclass(frozen=True)
class Similarity:
    """Pairs of words with a similarity above 0.8; a word is similar to itself.

    Attributes:
        name: Name of the word vectors.
        pairs: Each pair as a set of two words.
    """

    name: str
    pairs: frozenset[frozenset[str]]

    def __call__(self, word: str, other: str) -> bool:
        return word == other or frozenset((word, other)) in self.pairs


#: Without word vectors: only equal words are similar.
EXACT = Similarity("equal words only", frozenset())


def read_similarity(path: StrPath) -> Similarity:
    """A table as JSON: [[word, word, similarity], ...], or {"model": name, "pairs": [...]}.

    Pairs that are not in it are not similar.

    Raises:
        InputError: The file is missing, or an entry is not two words and a number.
    """
    path = fspath(path)
    data = files.read_json(path)
    name, pairs = Path(path).name, data
    if isinstance(data, dict):
        name, pairs = str(data.get("model", name)), data.get("pairs")
    if not isinstance(pairs, list):
        raise InputError(f"{path}: expected a list of [word, word, similarity], got {type(pairs).__name__}")
    similar = set()
    for index, pair in enumerate(pairs):
        match pair:
            case [str(word), str(other), int(value) | float(value)]:
                if value > THRESHOLD:
                    similar.add(frozenset((word, other)))
            case _:
                raise InputError(f"{path}: entry {index} must be [word, word, similarity], got {pair!r}")
    return Similarity(name, frozenset(similar))


def spacy_similarity(words: Iterable[str], model: str = SPACY_MODEL) -> Similarity:
    """The similarities of `words` by an installed spaCy model.

    Raises:
        InputError: spaCy or the model is not installed, or the model has no word vectors.
    """
    language_model = _load_spacy(model)
    docs = {word: language_model(word) for word in sorted(set(words))}
    pairs = (
        frozenset((word, other))
        for word, other in combinations(docs, 2)
        if float(docs[word].similarity(docs[other])) > THRESHOLD
    )
    return Similarity(model, frozenset(pairs))


def _load_spacy(model: str) -> Any:
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
    return language_model
