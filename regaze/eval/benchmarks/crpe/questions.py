"""The texts of CRPE's rows: a question, four options on lines of their own, a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.multiple_choice import check_options, format_options

LETTERS = "ABCD"


def read_options(text: str, source: str) -> tuple[str, tuple[str, ...]]:
    """A question, and its options on lines "A. ..", "B. ..", without what follows these.

    Raises:
        InputError: There are no four such lines, or two options are alike; names `source`.
    """
    lines = text.split("\n")
    for start in range(len(lines) - len(LETTERS), 0, -1):
        chosen = lines[start : start + len(LETTERS)]
        if all(line.startswith(f"{letter}. ") for letter, line in zip(LETTERS, chosen, strict=True)):
            return "\n".join(lines[:start]), check_options([line[3:] for line in chosen], source)
    raise InputError(f"{source}: expected a question with four lines 'A. ..' to 'D. ..', got {text!r}")


def question_text(question: str, options: Sequence[str]) -> str:
    """The text of a row in the published layout."""
    lettered = format_options(question, options)
    return f"{lettered}\nAnswer with the option's letter from the given choices directly."


def rotations(record: Mapping[str, Any], question: str, options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The four rows of a question whose first option is right."""
    for shift in range(len(options)):
        turned = [*options[shift:], *options[:shift]]
        letter = LETTERS[turned.index(options[0])]
        yield {**record, "text": question_text(question, turned), "correct_option": letter}
