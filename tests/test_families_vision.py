"""Every vision-language family of the zoo: idle equal, roles, masses, methods, prompts."""

from __future__ import annotations

import pytest
from family_checks import CHECKS, outcome
from zoo import crossing, documents, gemma, llava_like, others, qwen, tiled
from zoo.base import Entry

ENTRIES: tuple[Entry, ...] = tuple(
    entry
    for part in (llava_like, qwen, gemma, tiled, others, documents, crossing)
    for entry in part.ENTRIES
    if entry.refused is None
)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.name}-{entry.build.__name__}")
def test_family(entry: Entry, check: str):
    assert outcome(entry, check)
