"""The table of docs/guide/analysis.md names what there is."""

from __future__ import annotations

import re

from paths import DOCS

from regaze.toolkit import analysis

PAGE = (DOCS / "guide" / "analysis.md").read_text(encoding="utf-8")


def test_the_table_names_functions_that_exist():
    table = PAGE[PAGE.index("| what |") : PAGE.index("Under `gaze.using")]
    named = re.findall(r"`(\w+)`", table)
    assert len(named) > 20
    assert not [name for name in named if not hasattr(analysis, name)]
