"""The lines of docs/guide/analysis.md run as they stand there, and its table names what there is."""

from __future__ import annotations

import re

from paths import DOCS

from regaze.toolkit import analysis

PAGE = (DOCS / "guide" / "analysis.md").read_text(encoding="utf-8")


def test_the_page_runs(capsys):
    names: dict = {}
    code = re.search(r"```python\n(.*?)```", PAGE, re.S).group(1)
    exec(compile(code, "docs/guide/analysis.md", "exec"), names)
    assert "layer head     mass" in capsys.readouterr().out
    assert len(names["lens"].image_words(layer=5)) == 8
    assert len(names["rhythm"].waad) == len(names["rhythm"].text)


def test_the_table_names_functions_that_exist():
    table = PAGE[PAGE.index("| what |") : PAGE.index("Under `gaze.using")]
    named = re.findall(r"`(\w+)`", table)
    assert len(named) > 20
    assert not [name for name in named if not hasattr(analysis, name)]
