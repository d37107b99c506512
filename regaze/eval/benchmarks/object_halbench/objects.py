"""Objects of an answer: found in its words, or in the list that a judge makes of it.

The official script hands the listed objects to spaCy's en_core_web_trf. Here NLTK tags and lemmatises them:
the rule that is applied to tags and lemmas is the same, single words may come out otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from regaze.eval.benchmarks.chair.words import DOUBLE_WORDS, SynonymReader, noun_forms, read_synonyms
from regaze.eval.benchmarks.common import language
from regaze.reading import StrPath


def read_words(path: StrPath) -> SynonymReader:
    """The reader of the official synonyms_refine.txt: double words are its own, and CHAIR's.

    Raises:
        InputError: The file is missing or malformed.
    """
    synonyms = {word.strip(): category for word, category in read_synonyms(path).items()}
    doubles = {word: word for word in synonyms if " " in word}
    return SynonymReader(synonyms, noun_forms, {**doubles, **DOUBLE_WORDS})


class UnreadableReplyError(Exception):
    """A judge's reply without the objects that it was to list."""


def parse_reply(reply: str) -> Any:
    """The JSON value of a judge's reply as the official script finds it: the whole, else the last line.

    Any JSON passes, not only lists of texts. The last line is looked at only if the reply contains '["'.

    Raises:
        UnreadableReplyError: There is none; the script asks again, a hundred times.
    """
    try:
        return json.loads(reply)
    except (ValueError, RecursionError) as error:
        if '["' not in reply:
            raise UnreadableReplyError("no JSON in the reply") from error
    try:
        return json.loads(reply.strip().split("\n")[-1])
    except (ValueError, RecursionError) as error:
        raise UnreadableReplyError("no JSON in the last line of the reply") from error


def official_names(reply: str, double_words: Mapping[str, str]) -> list[str]:
    """Base forms of the objects in a reply, as the official script takes them from what `parse_reply` finds.

    Of a text that is every letter, of an object every key.

    Raises:
        UnreadableReplyError: The script stops: no JSON, or a value that it cannot go through.
    """
    value = parse_reply(reply)
    if not isinstance(value, (list, dict, str)):
        raise UnreadableReplyError(f"{value!r} is no list of objects")
    return [name for each in value for name in _nouns(f"a {each}", double_words)]


def listed_names(reply: str) -> list[str]:
    """The texts of the JSON list in a reply, whatever stands around it.

    Raises:
        UnreadableReplyError: There is no list, or it holds anything but texts.
    """
    try:
        names = json.loads(reply[reply.find("[") : reply.rfind("]") + 1] or "null")
    except (ValueError, RecursionError) as error:
        raise UnreadableReplyError("no JSON list in the reply") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UnreadableReplyError("no list of texts in the reply")
    return names


def _nouns(phrase: str, double_words: Mapping[str, str]) -> list[str]:
    """The double words among the lemmas of a phrase, else each run of nouns as one name."""
    words = language.tokens(phrase)
    lemmas = language.lemmas_by_tag(words)
    doubles, at = list[str](), 0
    while at < len(lemmas):
        pair = double_words.get(" ".join(lemmas[at : at + 2]))
        doubles += [] if pair is None else [pair]
        at += 1 if pair is None else 2
    if doubles:
        return doubles
    runs = [list[str]()]
    for lemma, (_, tag) in zip(lemmas, language.tagged(words), strict=True):
        if tag.startswith("NN"):
            runs[-1].append(lemma)
        else:
            runs.append([])
    return [" ".join(run) for run in runs if run]
