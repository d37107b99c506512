"""Which of the built-in methods cannot act together with default parameters, and why."""

from __future__ import annotations

_POLICY = "both redistribute the masses that the softmax gives"
_ROWS = "they change the attention weights of different rows of the prompt"
_ROWS_LATER = "where a prompt or a branch has no image, AD-HH selects rows of the answer, too"
_SCORES = "their maps of the scores do not commute"

_REDISTRIBUTE = ("adhh", "gift", "var")
_MAP_SCORES = ("hgai", "pai", "paint", "vaf")
#: Edit every text row behind the image; the others those rows that predict the answer.
_MANY_ROWS = ("vaf", "var")


def _why(first: str, second: str) -> str | None:
    pair = {first, second}
    if pair <= {*_REDISTRIBUTE}:
        return _POLICY
    if pair <= {*_MAP_SCORES}:
        return _SCORES
    if len(pair & {*_MANY_ROWS}) == 1:
        return _ROWS
    return _ROWS_LATER if "adhh" in pair and pair & {*_MAP_SCORES} else None


#: Pairs in alphabetical order.
EXCLUSIVE: dict[tuple[str, str], str] = {
    (first, second): why
    for first in sorted({*_REDISTRIBUTE, *_MAP_SCORES})
    for second in sorted({*_REDISTRIBUTE, *_MAP_SCORES})
    if first < second and (why := _why(first, second)) is not None
}
