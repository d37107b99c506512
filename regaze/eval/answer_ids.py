"""Ids as answer files spell and count them: numbers in texts, numbers of rows, mistakes in few of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise

from regaze.eval.benchmarks.common.ids import plain_id

#: In fewer rows no mistake is supposed.
_FEWEST_WITH_MISTAKES = 4


def numbered(values: Sequence[Hashable]) -> list[Hashable]:
    """Each value; from its second occurrence on with the number of the occurrence."""
    counts: Counter[Hashable] = Counter()
    out: list[Hashable] = []
    for value in values:
        counts[value] += 1
        out.append(value if counts[value] == 1 else (value, counts[value]))
    return out


def is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


def as_numbers(ids: list[str]) -> list[str]:
    """The numbers in ids that are alike but for one number ("q7", "q12"); other ids as they are."""
    frames = {re.sub(r"\d+", "0", each) for each in ids}
    if [frame.count("0") for frame in frames] != [1]:
        return ids
    return [plain_id(re.sub(r"\D", "", each)) for each in ids]


def spelt_alike(known: list[str], ids: list[str]) -> tuple[list[str], list[str]]:
    """Ids of the benchmark and of the rows, as numbers where only one side has words around them.

    Where rows count from 0 what the benchmark counts from 1, both count from 0.
    """
    if all(map(is_number, known)) or all(map(is_number, ids)):
        known, ids = as_numbers(known), as_numbers(ids)
    count = len(known)
    if set(ids) == set(map(str, range(count))) and set(known) == set(map(str, range(1, count + 1))):
        known = [str(int(each) - 1) for each in known]
    return known, ids


def ascends(ids: Sequence[str]) -> bool:
    """Whether the ids are numbers, each greater than the one before."""
    return all(map(is_number, ids)) and all(int(a) < int(b) for a, b in pairwise(ids))


def in_order(ids: Sequence[str]) -> list[str]:
    """Whole numbers by their size, and texts somehow."""
    return sorted(ids, key=lambda each: (len(each), each))


def numbers_rows(ids: list[str]) -> bool:
    """Whether the ids are the numbers of the rows that they stand in, from 0 or 1."""
    numbers = as_numbers(ids)
    return any(numbers == [str(first + place) for place in range(len(ids))] for first in (0, 1))


def fits(ids: Sequence[str], known: Sequence[str]) -> bool:
    """Whether ids are the known ones, but for mistakes in one or in a tenth of them, which `_match` names."""
    mistakes = max(len(ids), len(known)) - len(set(ids) & set(known))
    return mistakes <= (max(1, len(known) // 10) if len(known) >= _FEWEST_WITH_MISTAKES else 0)


def mostly(ids: Sequence[Hashable], known: Sequence[Hashable]) -> bool:
    """Whether at least half of the ids are known."""
    names = set(known)
    return bool(ids) and 2 * sum(each in names for each in ids) >= len(ids)
