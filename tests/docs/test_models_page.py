"""docs/reference/families.md is what families_page writes; its rows are compared where their checks run."""

from __future__ import annotations

import families_page
from zoo.every import TEXT, VISION


def test_the_page_but_for_what_the_checks_say(monkeypatch):
    written = families_page.PAGE.read_text(encoding="utf-8").splitlines()
    monkeypatch.setattr(families_page, "row", lambda entry: f"| {entry.name} |")
    expected = families_page.page().splitlines()
    names = {entry.name for entry in VISION + TEXT}
    found = [line.split(" | ")[0] + " |" if line[2:].split(" |")[0] in names else line for line in written]
    assert found == expected, families_page.STALE
