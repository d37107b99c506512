"""Signals that wait until a short piece of work is complete."""

from __future__ import annotations

import signal
import threading
from typing import Any

_SIGNALS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))
)


class Uninterrupted:
    """`with Uninterrupted():` runs Python's handlers of SIGINT, SIGTERM and SIGHUP after the block.

    Handlers run in the main thread only, so nothing is done in others.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._waiting: list[tuple[int, Any]] = []
        self._active = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            self._active = True
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        except BaseException:
            self._restore()
            raise

    def __exit__(self, *error: object) -> None:
        self._restore()
        while (
            self._waiting
        ):  # no frame in a variable here: it would keep this one, and the caller's block, alive
            self._hand_on(*self._waiting.pop(0))

    def _restore(self) -> None:
        try:
            for number, handler in reversed(self._handlers.items()):  # SIGINT, the likeliest, last
                if signal.getsignal(number) == self._note:
                    signal.signal(number, handler)
        finally:
            self._active = False

    def _note(self, number: int, frame: Any) -> None:
        """The handler in the block; one that could not be put back hands its signals on."""
        if self._active:
            self._waiting.append((number, frame))
        else:
            self._hand_on(number, frame)

    def _hand_on(self, number: int, frame: Any) -> None:
        self._handlers[number](number, frame)
