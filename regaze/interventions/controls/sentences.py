"""Where the sentences of an answer end."""

from __future__ import annotations

import re

#: A full stop, question or exclamation mark before white space or at the end, with closing quotes.
_END = re.compile(r"[.!?]+[\"')\]\u201d\u2019]*(?=\s|$)")
#: What ends in a full stop within a sentence: abbreviations, and initials.
_WITHIN = re.compile(r"(?:^|[\s(])(?:e\.g|i\.e|cf|vs|mr|mrs|ms|dr|st|approx|[a-z])\.$", re.IGNORECASE)


def ends(text: str) -> list[int]:
    """The positions behind the sentences of a text that end as one."""
    found = []
    for match in _END.finditer(text):
        follows = text[match.end() :].lstrip()
        if follows and (_WITHIN.search(text[: match.end()]) or follows[0].islower()):
            continue
        found.append(match.end())
    return found


def without_last(text: str, count: int = 1) -> str:
    """The text without its last sentences, of which the last one need not be whole; the first one stays."""
    bounds = ends(text)
    if text[bounds[-1] if bounds else 0 :].strip():
        bounds.append(len(text))
    return text if count == 0 or len(bounds) < 2 else text[: bounds[max(0, len(bounds) - 1 - count)]]


def without_fragment(text: str) -> str:
    """The text up to the end of its last whole sentence; all of it where no sentence is whole."""
    bounds = ends(text)
    return text[: bounds[-1]] if bounds else text
