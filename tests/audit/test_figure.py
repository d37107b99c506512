"""The audit's figure: rows, marks, words, and what it refuses."""

from __future__ import annotations

import pytest
from made_up_audit import MODELS, VERDICTS, audit_content

from regaze.audit.figure import SHAPES, audit_figure
from regaze.errors import BadParameterError


def dots(axes):
    """(x, marker) of what is drawn inside of the axes with a mark."""
    inside = [
        line for line in axes.lines if line.get_marker() != "None" and line.get_transform() == axes.transData
    ]
    return [(round(float(line.get_xdata()[0]), 1), line.get_marker()) for line in inside]


def test_a_row_has_both_differences_and_its_verdict_by_shape_and_word(tmp_path):
    figure = audit_figure(audit_content(), path=tmp_path / "audit.pdf")
    assert [axes.get_title() for axes in figure.axes] == list(MODELS)
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == list(VERDICTS)
    assert [text.get_text() for text in first.texts] == [verdicts[0] for verdicts in VERDICTS.values()]
    assert dots(first) == [(10.0, "^"), (9.0, "|"), (7.0, "D"), (6.0, "|"), (4.0, "v"), (3.0, "|")]
    assert figure.axes[1].get_xlim() == first.get_xlim()
    assert "pope: difference in accuracy, in points (more is better)" in figure.get_supxlabel()
    assert len(set(SHAPES.values())) == 6
    assert (tmp_path / "audit.pdf").read_bytes().startswith(b"%PDF")


def test_one_benchmark_of_one_model():
    figure = audit_figure(audit_content(), benchmark="captions", models=["two"])
    (axes,) = figure.axes
    assert axes.get_title() == "two"
    assert [marker for _, marker in dots(axes)] == ["o", "D", "v"]  # no controls there
    assert "CHAIR_s, in points (less is better)" in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": ["on"]}, "no model 'on' in this audit; did you mean 'one'"),
        ({"benchmark": "pop"}, "no benchmark 'pop'"),
    ],
)
def test_what_is_not_there_is_named(given, message):
    with pytest.raises(BadParameterError, match=message):
        audit_figure(audit_content(), **given)


def test_an_audit_without_figures_is_refused():
    content = audit_content()
    for model in content["models"].values():
        model["methods"] = {"unheard": model["methods"]["unheard"]}
    with pytest.raises(BadParameterError, match="nothing was measured in this audit"):
        audit_figure(content)
