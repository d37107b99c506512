"""Which built-in methods cannot act together in one `gaze.using`, with default parameters, and why."""

from __future__ import annotations

from itertools import combinations

_MOVE_MASS = ("adhh", "attnreal", "gift", "spin", "var")
_MAP_SCORES = ("cai", "hgai", "pai", "paint", "vaf")
#: These edit every text row after the image; the others only the rows that predict the answer.
_EDIT_QUESTION = ("vaf", "var")
#: And these every row of a branch of their own.
_EDIT_BRANCH = ("causalmm", "sid")
_EDIT_MLPS = ("memvr", "nullu", "vista", "vti")
#: This one edits nothing of a prompt, whose rows others may edit.
_ONLY_ANSWERS = ("attnreal",)
#: These take image tokens away.
_PRUNE = ("fastv", "pyramiddrop", "sparsevlm")
#: By default these edit different layers.
_APART = ({"cai", "hgai"}, {"cai", "vaf"})


_WITH_PRUNING = {
    "moa": "its windows count the keys between two tokens, of which some have left",
    "sid": "its branch sees the image tokens that are attended to least, which have left",
}


def _reason(first: str, second: str) -> str | None:
    """Why two of the methods above cannot act together."""
    pair = {first, second}
    if pair <= {*_PRUNE}:
        return "each chooses among the image tokens that the other has left"
    if pair & {*_PRUNE}:
        return _WITH_PRUNING.get(min(pair - {*_PRUNE}))
    if pair in _APART:
        return None
    if pair <= {*_MOVE_MASS}:
        return "both redistribute the masses that the softmax gives"
    if pair <= {*_MAP_SCORES}:
        return "their maps of the scores do not commute"
    if pair <= {*_EDIT_MLPS}:
        return "both edit the outputs of MLPs, and what comes out would depend on their order"
    if pair & {*_EDIT_MLPS, *_ONLY_ANSWERS, "moa"}:
        return None
    if len(pair & {*_EDIT_QUESTION}) == 1 or len(pair & {*_EDIT_BRANCH}) == 1:
        return "they change the attention weights of different rows of the prompt"
    if "adhh" in pair and pair & {*_MAP_SCORES}:
        return "where a prompt or a branch has no image, AD-HH also selects rows of the answer"
    return None


_ALL = {*_MOVE_MASS, *_MAP_SCORES, *_EDIT_BRANCH, *_EDIT_MLPS, *_PRUNE, *_WITH_PRUNING}
#: Reasons by pair of names; pairs and the names in them are in alphabetical order.
INCOMPATIBLE: dict[tuple[str, str], str] = {
    (first, second): reason
    for first, second in combinations(sorted(_ALL), 2)
    if (reason := _reason(first, second)) is not None
}


def why_incompatible(first: str, second: str) -> str | None:
    """Why two built-in methods, by name and in any order, cannot act together; None where they can."""
    return INCOMPATIBLE.get((min(first, second), max(first, second)))
