"""MMStar's questions, which hold their options in three shapes.

* One line: "Options: A: .., B: .., C: .., D: ..".
* "Choices:", then a line per option: "(A) ..".
* The lines alone.

An option that does not exist is the text "nan". Between others "nan" was "None" once, and in one question it
is right. Some options are there twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from regaze.errors import InputError

LETTERS = "ABCD"
#: (what stands before the first option, how each further one begins)
_SHAPES = (("Options: A: ", ", {}: "), ("\n(A) ", "\n({}) "))
#: The texts that join_options makes, by name.
SHAPES = ("line", "choices", "bare")


def split_options(text: str, source: str) -> tuple[str, tuple[str, ...]]:
    """A question without its options, and these as published.

    Raises:
        InputError: the text ends in none of the three shapes; names `source`.
    """
    for first, following in _SHAPES:
        question, found, rest = text.rpartition(first)
        options = _split(rest, following) if found else []
        if len(options) > 1 and question.strip():
            return question.rstrip().removesuffix("Choices:").rstrip(), tuple(options)
    raise InputError(
        f"{source}: expected a question that ends in 'Options: A: .., B: ..' or in lines '(A) ..', got "
        f"{text!r}"
    )


def _split(text: str, following: str) -> list[str]:
    options = []
    for letter in LETTERS[1:]:
        option, found, rest = text.partition(following.format(letter))
        if not found:
            break
        options.append(option.strip())
        text = rest
    return [*options, text.strip()]


def join_options(question: str, options: Sequence[str], shape: str) -> str:
    """A question with its options in one of `SHAPES`."""
    lettered = list(zip(LETTERS, options, strict=False))
    if shape == "line":
        return f"{question}\nOptions: " + ", ".join(f"{letter}: {option}" for letter, option in lettered)
    lines = [f"({letter}) {option}" for letter, option in lettered]
    return "\n".join([question, *(["Choices:"] if shape == "choices" else []), *lines])
