"""What methods read of the residual stream of prompts, a number a row, kept beside the keys of the row."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor


class RowValues:
    """Values by slot of the cache: they are there where vLLM takes keys from its cache of prefixes.

    They are true wherever such keys are: a slot gets a value whenever its keys are written, and requests find
    keys of requests with the same methods alone, whose pages are given up where one fails.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor] = {}

    def keep(self, place: Hashable, slots: Tensor, values: Tensor, count: int) -> None:
        """Values [R] fp32 of rows whose keys lie in `slots` [R] of `count`, of one layer and reader."""
        if place not in self._kept:
            self._kept[place] = values.new_zeros(count)
        self._kept[place][slots] = values

    def __contains__(self, place: Hashable) -> bool:
        """Whether values of any rows were kept there."""
        return place in self._kept

    def of(self, place: Hashable, slots: Tensor) -> Tensor:
        """Values [R] of the rows whose keys lie in `slots` [R]."""
        return self._kept[place][slots]
