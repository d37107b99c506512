"""The token that a page begins with: what the answer, or else the question, is about."""

from __future__ import annotations

import pytest

from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.viewer.trace_view import TraceView


def view(question: list[str], answer: list[str], rows: list[int] | None = None) -> TraceView:
    made = TraceView.__new__(TraceView)
    made.pieces = ["", *question, *answer]
    made.prompt = 1 + len(question)
    made.roles = [int(Role.IMAGE)] + [int(Role.QUERY)] * len(question) + [int(Role.OUTPUT)] * len(answer)
    made.rows = list(range(len(made.pieces))) if rows is None else rows
    return made


ASKED = ["Is", " there", " a", " sur", "fer", " in", " the", " image", "?"]


@pytest.mark.parametrize(
    ("answer", "rows", "piece"),
    [
        (["The", " image", " shows", " a", " train", "."], None, " train"),
        ([" A", " sky", "lark", " sings"], None, " sky"),
        (["Yes", "."], None, "fer"),  # no word of its own: the one that was asked for, as a whole
        (["Yes", "."], [9, 10], None),  # whose row is not there
        (["The", " train"], [10], " train"),  # predicted by the row before it
    ],
)
def test_a_page_begins_with_the_first_word_that_says_something(answer, rows, piece):
    page = view(ASKED, answer, rows)
    token = page.opening_token()
    assert (None if token is None else page.pieces[token]) == piece


def test_the_answer_is_meant_where_a_word_is_in_both():
    page = view(["Where", " is", " the", " dog", "?"], ["The", " dog", " sleeps"])
    assert page.opening_token() == 7
