"""The figure of docs/reference/methods.md is drawn from the facts as they are now."""

from __future__ import annotations

import pytest
from paths import DOCS
from PIL import Image
from scripts import load_script

from regaze.interventions.facts import Facts


@pytest.fixture(scope="module")
def figure():
    return load_script(DOCS / "methods_figure.py")


def test_the_picture_is_of_these_facts(figure):
    with Image.open(figure.PICTURE) as picture:
        assert picture.info[figure.DIGEST] == figure.digest(figure.facts_by_name()), (
            "run: python docs/methods_figure.py"
        )
        assert picture.width > 1000
    page = (DOCS / "reference" / "methods.md").read_text(encoding="utf-8")
    assert f"](../assets/{figure.PICTURE.name})" in page


def test_it_places_every_method(figure, tmp_path):
    facts = figure.facts_by_name()
    drawn = {
        name
        for part in {part for each in facts.values() for part in each.edits}
        for when in figure.COLUMNS
        for line in figure._cell(facts, part, when)
        for name in line
    }
    assert drawn == {*facts}
    lines = figure._cell(facts, "logits", ("prompt", "answer"))
    assert lines[0][0] == "flb"
    for line in lines:
        assert sum(figure.width(figure.label(name, facts)) + figure.PAD for name in line) < 6.3
    path = tmp_path / "methods.png"
    figure.draw({"var": facts["var"]}, path)
    with Image.open(path) as picture:
        assert picture.info[figure.DIGEST] == figure.digest({"var": facts["var"]})
    with pytest.raises(ValueError, match="no column for"):
        figure.draw({"odd": Facts(edits=("text",), cost="one forward", when=("after", "before"))}, path)
