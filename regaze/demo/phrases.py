"""Words and phrases for the demo's scenes: articles, places, numbers, and POPE's question."""

from __future__ import annotations

from regaze.demo.shipped import SceneObject

_PLACES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the center", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)
PLACES = tuple(place for row in _PLACES for place in row)
NUMBERS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven")


def with_article(noun: str) -> str:
    """ "a cup", "an apple": "an" before a, e, i, o, u, which is POPE's rule."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def existence_question(category: str) -> str:
    """POPE's question."""
    return f"Is there {with_article(category)} in the image?"


def place(thing: SceneObject, side: int = 112) -> str:
    """Where a thing's centre is on a 3 x 3 grid, as a phrase ("in the upper left")."""
    x, y = thing.centre
    return _PLACES[min(2, int(3 * y / side))][min(2, int(3 * x / side))]


def enumerate_phrases(phrases: list[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def capitalise(text: str) -> str:
    """The text with its first letter in upper case; the others stay."""
    return text[0].upper() + text[1:]
