"""Answers to multiple-choice questions: which letter an answer chooses.

lmms-eval tries a list of patterns per benchmark and takes the first that fits; a "B" may come from the word
"be". Ours takes a letter or an option's text that stands alone, and reads nothing into anything else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MMVP = (
    r"^\s*\(?([AB])\)?\.?\s*$",
    r"^\s*\(?([AB])\)?[.\s]",
    r"answer\s+is\s+\(?([AB])\)?",
    r"option\s+\(?([AB])\)?",
    r"\(?([AB])\)?(?:\s|$)",
)
_VSTAR = (
    r"^([A-D])\s*[.)\]]*",
    r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
    r"\(([A-D])\)",
    r"([A-D])\s*[.)\]]",
    r"(?:^|\s)([A-D])(?:\s|$)",
)
_ALONE = re.compile(r"[^\w]*(?:option\s+)?([A-Z])\b[^\w]*(?:$|[.:)\]]\s)", re.IGNORECASE)


def lmms_eval_mmvp(answer: str) -> str:
    """The letter, A or B, that lmms-eval reads for MMVP, "" for none."""
    return _first(_MMVP, answer.strip()) or (
        answer.strip()[:1].upper() if answer.strip()[:1] in "abAB" else ""
    )


def lmms_eval_vstar(answer: str) -> str:
    """The letter, A to D, that lmms-eval reads for V*Bench, "" for none."""
    text = answer.strip().upper()
    found = _first(_VSTAR, text)
    if found:
        return found
    letters = re.findall("[A-D]", text)
    return letters[0] if len(letters) == 1 else ""


def read_choice(answer: str, options: Sequence[str]) -> str:
    """The letter of the option that an answer chooses, "" when that cannot be told.

    An answer chooses by its letter ("B", "(b)", "B. On the left") or by an option's whole text.
    """
    letters = "ABCDEFGHIJ"[: len(options)]
    plain = answer.strip().rstrip(".").lower()
    if plain in (named := [option.strip().rstrip(".").lower() for option in options]):
        return letters[named.index(plain)]
    found = _ALONE.match(answer.strip())
    letter = found[1].upper() if found else ""
    return letter if letter and letter in letters else ""


def lettered(question: str, options: Sequence[str]) -> str:
    """The question and its options, a line each: "A. ...", "B. ..."."""
    return "\n".join(
        [question, *(f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJ", options, strict=False))]
    )


def _first(patterns: Sequence[str], text: str) -> str:
    for pattern in patterns:
        found = re.search(pattern, text, re.IGNORECASE)
        if found:
            return found[1].upper()
    return ""
