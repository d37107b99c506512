"""Multiple-choice questions: how options are shown, and which letter an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from regaze.errors import InputError

LETTERS = "ABCDEFGHIJ"
_LETTER_ALONE = re.compile(r"[^\w]*(?:option\s+)?([A-Z])\b[^\w]*(?:$|[.:)\]]\s)", re.IGNORECASE)


def format_options(question: str, options: Sequence[str]) -> str:
    """The question and its options, one per line: "A. ...", "B. ..."."""
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return "\n".join([question, *lines])


def check_options(options: Sequence[str], source: str) -> tuple[str, ...]:
    """Two or more options, each of them another text.

    Raises:
        InputError: there are fewer, an option is blank, or two are the same; names `source`.
    """
    texts = tuple(option.strip() for option in options)
    if not 2 <= len(texts) <= len(LETTERS) or not all(texts) or len(set(texts)) < len(texts):
        raise InputError(f"{source}: expected 2 to {len(LETTERS)} different options, got {list(options)!r}")
    return texts


def split_options(text: str, source: str) -> tuple[str, tuple[str, ...]]:
    """A question and its options, of a text that ends in "(A) ... (B) ...".

    Raises:
        InputError: as `check_options`, or the letters are not A, B, C ... in this order.
    """
    question, *parts = re.split(r"\s*\(([A-Ja-j])\)\s*", text)
    letters, options = "".join(parts[::2]).upper(), parts[1::2]
    if letters != LETTERS[: len(letters)]:
        raise InputError(f"{source}: expected options (A), (B) and so on in this order, got {text!r}")
    return question, check_options(options, source)


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
