"""The one thread that may run a model while a block is open on it."""

from __future__ import annotations

import threading

from regaze.errors import InputError


class OwnThread:
    """The thread that opened the first block of a model, which is the one that creates this object."""

    def __init__(self, name: str):
        self._name, self.ident = name, threading.get_ident()

    @property
    def is_current(self) -> bool:
        return threading.get_ident() == self.ident

    def check(self) -> None:
        """Raise InputError in any other thread: its forwards would be edited and recorded with this one's."""
        if threading.get_ident() != self.ident:
            raise InputError(
                f"this {self._name} has a gaze.using(...) or gaze.recording(...) open in another thread; "
                "only the thread that opened a block may run the model or open further blocks until it "
                "closes: do all of it in one thread, or load the model once for each thread"
            )
