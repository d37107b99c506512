"""Bars of what takes long: seen in a terminal and a notebook, and nowhere else."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import torch
from models import picture

from regaze.interventions.adhh.head_search import Caption, find_hallucination_heads
from regaze.progress import counting, reporting
from regaze.toolkit import analysis

QUESTION = "Is there a dog in the image?"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch) -> Terminal:
    """A terminal as standard error; not a fixture, whose change pytest undoes before the test."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def run(progress: object) -> None:
    with reporting(progress) as report:
        for done in range(4):
            report("captions", done, 3)


def test_a_terminal_shows_a_bar_per_label(monkeypatch):
    screen = terminal(monkeypatch)
    run(None)
    assert "captions: 100%" in screen.getvalue()
    assert "3/3" in screen.getvalue()


def test_a_bar_continues_where_a_run_was_stopped(monkeypatch):
    screen = terminal(monkeypatch)
    with reporting() as report:
        report("pope plain", 40, 50)
        report("pope plain", 50, 50)
    assert "40/50" in screen.getvalue()
    assert "50/50" in screen.getvalue()


def test_without_a_terminal_nothing_is_printed(capsys):
    run(None)
    assert capsys.readouterr().err == ""
    run(True)
    assert "3/3" in capsys.readouterr().err


def test_a_notebook_shows_bars(monkeypatch, capsys):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    run(None)
    assert "3/3" in capsys.readouterr().err
    shell.config = {}  # IPython in a pipe
    run(None)
    assert capsys.readouterr().err == ""


def test_false_is_silent_and_a_function_is_called(monkeypatch):
    screen = terminal(monkeypatch)
    run(False)
    states: list[tuple[str, int, int]] = []
    run(lambda *state: states.append(state))
    assert states == [("captions", done, 3) for done in range(4)]
    counts: list[int] = []
    with counting(counts.append, "captions", 3) as report:
        report(2)
    assert counts == [2]
    assert screen.getvalue() == ""


def test_questions_have_a_bar_where_it_is_asked_for(gaze, monkeypatch):
    screen = terminal(monkeypatch)
    images, questions = [picture(1), picture(2)], [QUESTION] * 2
    gaze.ask(images, questions, max_new_tokens=1)
    assert screen.getvalue() == ""
    gaze.ask(images, questions, max_new_tokens=1, batch_size=1, progress=True)
    assert "answers: 100%" in screen.getvalue()


def test_searches_have_bars(gaze, monkeypatch):
    screen = terminal(monkeypatch)
    effects = analysis.head_effects(
        lambda heads: torch.full((3,), float(len(heads))), analysis.ranked_heads(torch.rand(4, 4)), (1, 2)
    )
    assert effects.top.tolist() == [[1.0] * 3, [2.0] * 3]
    assert "sets of heads: 100%" in screen.getvalue()
    assert "13/13" in screen.getvalue()
    caption = Caption(picture(1), QUESTION, "a dog and a cat", ((2, 5),), ((12, 15),))
    find_hallucination_heads(gaze, [caption], heads_at_once=36)
    assert "captions: 100%" in screen.getvalue()


def test_fitting_a_phrase_has_a_bar(gaze, monkeypatch):
    screen = terminal(monkeypatch)
    maps = analysis.PhraseMaps(gaze, gaze.inputs([picture(1)], [QUESTION]))
    share, steps = torch.eye(8), []
    analysis.optimise_phrase([(maps, share)], "dog", steps=2)
    assert "steps: 100%" in screen.getvalue()
    analysis.optimise_phrase([(maps, share)], "dog", steps=2, progress=steps.append)
    assert steps == [1, 2]
