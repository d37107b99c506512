"""Choosing the trace, layers, heads and rows of a record, with errors that name the valid choices."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.toolkit.prompts.content_words import subject_words
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace

#: Rows of a trace: those that predict the answer's tokens, all recorded rows, or row numbers.
RecordedRows = Literal["answer", "all"] | Sequence[int]


def first_trace(record: Record | Trace) -> Trace:
    """A trace itself, or the first trace of a record."""
    return record if isinstance(record, Trace) else record[0]


def check_choice(what: str, value: Any, valid: Sequence[int]) -> int:
    """`value` as one of the integers `valid`; BadParameterError names the valid ones."""
    try:
        index = operator.index(value)
    except TypeError:
        raise BadParameterError(f"expected the {what}'s number, got {value!r}") from None
    if index not in valid:
        known = f"0..{len(valid) - 1}" if isinstance(valid, range) else list(valid)
        raise BadParameterError(f"{what} {index} was not recorded; the record has {known}")
    return index


def check_choices(what: str, values: Any, valid: Sequence[int]) -> list[int]:
    """`values` as a list of the integers `valid`; None: all of them."""
    if values is None:
        return list(valid)
    listed = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if not listed:
        raise BadParameterError(f"{what}s: expected a list with at least one {what}, got {values!r}")
    return [check_choice(what, each, valid) for each in listed]


def check_sample(trace: Trace, sample: int) -> int:
    """`sample` as a recorded row of the batch."""
    return check_choice("sample", sample, range(len(trace.row_active)))


def select_heads(trace: Trace, tensor: Tensor, layers: Any = None, heads: Any = None) -> Tensor:
    """The chosen layers and heads of `tensor` [layers, Hq, ...]; None: all."""
    indices = [trace.layers.index(layer) for layer in check_choices("layer", layers, trace.layers)]
    chosen = check_choices("head", heads, range(tensor.shape[1]))
    return tensor.index_select(0, torch.tensor(indices)).index_select(1, torch.tensor(chosen))


def select_rows(trace: Trace, rows: RecordedRows = "answer", sample: int = 0) -> Tensor:
    """Numbers [R] of the chosen rows of a sample, among the N recorded rows.

    The rows of an answer are the last row of the prompt and every decode row; if prompt and answer ran in one
    forward (`with_answers`), the rows that predict the answer's tokens.

    Raises:
        BadParameterError: an unknown choice, or rows that were not recorded.
    """
    count, active = len(trace.row_step), trace.row_active[sample]
    if not isinstance(rows, str):
        chosen = torch.tensor(check_choices("row", rows, range(count)))
        return chosen[active[chosen]]
    if rows == "all":
        return active.nonzero().flatten()
    if rows != "answer":
        raise BadParameterError(f'rows must be "answer", "all" or their numbers, got {rows!r}')
    if trace.tokens is not None and bool((trace.tokens.roles[sample] == int(Role.OUTPUT)).any()):
        answering = trace.tokens.answering()[sample]
        prompt = trace.row_position < trace.tokens.length
        predicting = prompt & answering[trace.row_position.where(prompt, 0)] | (trace.row_step > 0)
        return (predicting & active).nonzero().flatten()
    chosen = trace.answer_rows()
    return chosen[active[chosen]]


def token_row(trace: Trace, token: int | str, sample: int) -> int:
    """Number of the row that predicts an answer token (by number), or of a word's row (`Trace.row_of`)."""
    sample = check_sample(trace, sample)
    if isinstance(token, str):
        return trace.row_of(token, sample)
    rows = select_rows(trace, "answer", sample)
    return int(rows[check_choice("answer token", token, range(len(rows)))])


def asked_word(trace: Trace, sample: int = 0) -> str | None:
    """The word that a question asks about: its last content word that does not name the picture or the task.

    "dog" of "Is there a dog in the image? Answer yes or no." None where there is no such word, or its row was
    not recorded (rows="text"), or the text is not known.
    """
    if trace.text is None or trace.tokens is None:
        return None
    places = trace.tokens.columns(Role.QUERY, sample).tolist()
    question = "".join(trace.text[sample][place] for place in places)
    named = [word.text for word in subject_words(question)]
    if not named:
        return None
    try:
        trace.row_of(named[-1], sample)
    except BadParameterError:
        return None
    return named[-1]


def first_column(trace: Trace, sample: int) -> int:
    """The first column of a sample that is not padding; 0 if the roles are not known."""
    if trace.tokens is None:
        return 0
    return int((trace.tokens.roles[sample] != int(Role.PAD)).int().argmax())
