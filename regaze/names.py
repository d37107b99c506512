"""Names as people type them: in any capitals, with other hyphens; and what is near to one that is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence

#: Of more names than these, near ones alone are listed, where there are any.
_FEW = 12


def find_name(text: str, known: Iterable[str]) -> str | None:
    """The known name that `text` spells: exactly, else but for capitals, hyphens, underscores and spaces."""
    known = list(known)
    if text in known:
        return text
    return next((name for name in known if _letters(name) == _letters(text)), None)


def known_name(text: str, known: Iterable[str]) -> str:
    """`find_name`, or the text itself: what it is looked up by then refuses it."""
    return find_name(text, known) or text


def near_names(text: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known names that `text` may be a slip of, the nearest first."""
    by_letters = {_letters(name): name for name in known}
    return [by_letters[each] for each in difflib.get_close_matches(_letters(text), by_letters, most)]


def suggestion(text: str, known: Collection[str], there: str = "there are", none: str = "none") -> str:
    """How an error goes on after an unknown name: "; did you mean 'rho'? There are rho, moved".

    Args:
        there: what introduces the names. none: what stands in their place where there are none.
    """
    near, names = list(map(repr, near_names(text, known))), ", ".join(known) or none
    if not near:
        return f"; {there} {names}"
    asked = f"; did you mean {either(near)}?"
    return asked if len(known) > _FEW else f"{asked} {there[0].upper()}{there[1:]} {names}"


def either(words: Sequence[str]) -> str:
    """'a', 'a or b', 'a, b or c'."""
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold())) or name
