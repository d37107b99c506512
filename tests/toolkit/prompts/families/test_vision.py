"""Every vision-language family of the zoo: idle equal, roles, masses, methods, prompts."""

from __future__ import annotations

import pytest
from families_page import PAGE, STALE, row
from family_checks import CHECKS, outcome
from zoo.base import Entry
from zoo.every import VISION, label, runs, skip_if_older, skip_page_if_other_release

CASES = [
    pytest.param(entry, check, id=f"{label(entry)}-{check}")
    for entry in VISION
    for check in ([*CHECKS, "page"] if runs(entry) else ["prompts"])
]


@pytest.mark.parametrize(("entry", "check"), CASES)
def test_family(entry: Entry, check: str):
    skip_if_older(entry)
    if check == "page":
        skip_page_if_other_release()
        assert row(entry) in PAGE.read_text(encoding="utf-8").splitlines(), STALE
    else:
        assert outcome(entry, check)


def test_the_zoo_is_as_large_as_promised():
    assert len({entry.name for entry in VISION}) >= 40
