"""How much of an answer a response contains."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

from regaze.errors import InputError


def unigram_recall(answer: str, response: str) -> float:
    """ROUGE-1 recall with stemming: the share of the answer's words that the response contains, in 0..1.

    As the `rouge-score` package counts it (lower case, letters and digits only, Porter stems of words longer
    than three letters, repeated words as often as they occur), extended from ASCII to all letters.

    Raises:
        InputError: nltk, which has the stemmer, is not installed.
    """
    expected, found = (Counter(map(_stem, _WORD.findall(text.lower()))) for text in (answer, response))
    return (expected & found).total() / max(1, expected.total())


_WORD = re.compile(r"[^\W_]+")


@cache
def _stem(word: str) -> str:
    return word if len(word) <= 3 else str(_stemmer().stem(word))


@cache
def _stemmer() -> Any:
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError as error:
        raise InputError("needle answers are compared by stems: pip install 'regaze[eval]'") from error
    return PorterStemmer()
