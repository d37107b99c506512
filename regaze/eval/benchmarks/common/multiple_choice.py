"""Multiple-choice questions: how options are shown, and which letter an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
_LETTER_ALONE = re.compile(r"[^\w]*(?:option\s+)?([A-Z])\b[^\w]*(?:$|[.:)\]]\s)", re.IGNORECASE)


def format_options(question: str, options: Sequence[str]) -> str:
    """The question and its options, one per line: "A. ...", "B. ..."."""
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return "\n".join([question, *lines])


def read_choice(answer: str, options: Sequence[str]) -> str:
    """The letter of the option that an answer chooses, "" if it chooses none.

    An answer chooses by a letter that stands alone ("B", "(b)", "B. On the left") or by the whole text of an
    option.
    """
    letters = LETTERS[: len(options)]
    plain = answer.strip().rstrip(".").lower()
    texts = [option.strip().rstrip(".").lower() for option in options]
    if plain in texts:
        return letters[texts.index(plain)]
    match = _LETTER_ALONE.match(answer.strip())
    letter = match[1].upper() if match else ""
    return letter if letter and letter in letters else ""


def first_match(patterns: Sequence[str], text: str) -> str:
    """The group of the first pattern that is found, in capitals; "" if none is. Case is ignored."""
    for pattern in patterns:
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            return match[1].upper()
    return ""
