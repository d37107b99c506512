"""Names as people type them."""

from __future__ import annotations

import pytest

from regaze.names import either, find_name, known_name, near_names, suggestion

KNOWN = ("mm-vet", "pope", "popev2", "drop-last-sentence", "as_released")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pope", "pope"),
        ("POPE", "pope"),
        ("MMVet", "mm-vet"),
        ("mm_vet", "mm-vet"),
        ("Drop last sentence", "drop-last-sentence"),
        ("as-released", "as_released"),
        ("pop", None),
        ("", None),
    ],
)
def test_capitals_and_hyphens_do_not_matter(text, name):
    assert find_name(text, KNOWN) == name
    assert known_name(text, KNOWN) == (name or text)


def test_the_exact_name_goes_before_one_that_is_spelt_otherwise():
    assert find_name("a-b", ["ab", "a-b"]) == "a-b"
    assert find_name("---", ["+++"]) is None  # neither has a letter


def test_near_names_are_suggested_and_few_names_are_listed():
    assert near_names("poep", KNOWN) == ["pope", "popev2"]
    assert suggestion("rhoo", ["rho", "tau"]) == "; did you mean 'rho'? There are rho, tau"
    assert suggestion("xyz", ["rho"], "it has") == "; it has rho"
    assert suggestion("xyz", []) == "; there are none"
    many = ["alpha", *(f"parameter{number}" for number in range(20))]
    assert suggestion("ALPHA1", many) == "; did you mean 'alpha'?"
    assert suggestion("xyz", many).startswith("; there are alpha, parameter0, ")


def test_words_with_or_between():
    assert [either(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a or b", "a, b or c"]
