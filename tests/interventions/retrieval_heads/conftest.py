"""A model whose retrieval head is known, and what the search finds in it."""

from __future__ import annotations

import pytest
from copying_model import (
    DEPTHS,
    HAYSTACK,
    LENGTHS,
    NEEDLE,
    OPTIONS,
    copying_model,
    copying_tokenizer,
)

from regaze.interventions.retrieval_heads import (
    find_retrieval_heads,
)


@pytest.fixture(scope="module")
def copier():
    return copying_model()


@pytest.fixture(scope="module")
def tokenizer():
    return copying_tokenizer()


@pytest.fixture(scope="module")
def found(copier, tokenizer):
    return find_retrieval_heads(
        copier, tokenizer, HAYSTACK, [NEEDLE], LENGTHS, DEPTHS, name="copier", **OPTIONS
    )
