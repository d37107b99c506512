"""`Newest`: the newest values by key."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Newest(dict[K, V]):
    """A dictionary that keeps the last values that were put into it.

    Args:
        most: how many.
    """

    def __init__(self, most: int):
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        while len(self) >= self._most:
            self.pop(next(iter(self)), None)
        super().__setitem__(key, value)
