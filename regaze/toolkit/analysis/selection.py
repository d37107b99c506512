"""Which trace, layers, heads and rows of a record an analysis is about, or an error saying what there is."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Record, Trace

#: Rows of a trace: those that predict the answer's tokens, all that were recorded, or their numbers.
RecordedRows = Literal["answer", "all"] | Sequence[int]


def first_trace(record: Record | Trace) -> Trace:
    """A trace as it is; of a record its first."""
    return record if isinstance(record, Trace) else record[0]


def check_choice(what: str, wanted: Any, there: Sequence[int]) -> int:
    """`wanted` as a number that is `there`, or BadParameterError saying which are."""
    try:
        found = operator.index(wanted)
    except TypeError:
        raise BadParameterError(f"expected the {what}'s number, got {wanted!r}") from None
    if found not in there:
        known = f"0..{len(there) - 1}" if isinstance(there, range) else list(there)
        raise BadParameterError(f"{what} {found} was not recorded; the record has {known}")
    return found


def check_choices(what: str, wanted: Any, there: Sequence[int]) -> list[int]:
    """`wanted` as numbers that are all `there`; None: all of them."""
    if wanted is None:
        return list(there)
    values = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else []
    if not values:
        raise BadParameterError(f"{what}s: expected a list with at least one {what}, got {wanted!r}")
    return [check_choice(what, each, there) for each in values]


def check_sample(trace: Trace, sample: int) -> int:
    """A row of the batch that was recorded."""
    return check_choice("sample", sample, range(len(trace.row_active)))


def select_heads(trace: Trace, tensor: Tensor, layers: Any = None, heads: Any = None) -> Tensor:
    """The chosen layers and heads of [layers, Hq, ...]; None: all."""
    held = [trace.layers.index(layer) for layer in check_choices("layer", layers, trace.layers)]
    chosen = check_choices("head", heads, range(tensor.shape[1]))
    return tensor.index_select(0, torch.tensor(held)).index_select(1, torch.tensor(chosen))


def select_rows(trace: Trace, rows: RecordedRows = "answer", sample: int = 0) -> Tensor:
    """[R] numbers of a sample's rows among the N recorded ones.

    The rows of an answer are the last row of the prompt and each decode row, or, where prompt and answer ran
    in one forward (`with_answers`), those of the answer's tokens.

    Raises:
        BadParameterError: an unknown choice, or rows that the record does not have.
    """
    count, here = len(trace.row_step), trace.row_active[sample]
    if not isinstance(rows, str):
        chosen = torch.tensor(check_choices("row", rows, range(count)))
        return chosen[here[chosen]]
    if rows == "all":
        return here.nonzero().flatten()
    if rows != "answer":
        raise BadParameterError(f'rows must be "answer", "all" or their numbers, got {rows!r}')
    if trace.tokens is not None and bool((trace.tokens.roles[sample] == int(Role.OUTPUT)).any()):
        answering = trace.tokens.answering()[sample]
        prompt = trace.row_position < trace.tokens.length
        wanted = prompt & answering[trace.row_position.where(prompt, 0)] | (trace.row_step > 0)
        return (wanted & here).nonzero().flatten()
    chosen = trace.answer_rows()
    return chosen[here[chosen]]
