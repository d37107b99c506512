"""`Block`: a `with` statement that puts callbacks into a model, and takes them out again whatever happens.

An interrupt may arrive while a block closes, too. Signals wait until that is done. Exceptions that are raised
without a signal may still cut it short: closing can be repeated, and is, at once and if need be when the
block is collected.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, Generic, NamedTuple, TypeVar

from transformers import PreTrainedModel

from regaze.toolkit.model.hook import close_session, open_session
from regaze.toolkit.model.session import Session
from regaze.toolkit.model.uninterrupted import Uninterrupted

T = TypeVar("T")
#: Closing is tried so often at once, and by so many finalizers after that.
_ATTEMPTS, _GUARDS = 3, 2


class Opened(NamedTuple):
    """What a block puts into its model.

    Attributes:
        value: what `with ... as` gives. finish: called at the end of a block that raised nothing.
    """

    session: Session
    value: Any
    finish: Callable[[], None] | None = None


class Block(ContextDecorator, Generic[T]):
    """A `using` or `recording` block of one model.

    Args:
        make: called when the block opens.
        model, outer: as for `open_session`.
    """

    def __init__(
        self, make: Callable[[], Opened], model: PreTrainedModel, outer: PreTrainedModel | None = None
    ):
        self._make, self._model, self._outer = make, model, outer
        self._opened: list[tuple[Opened, list[Any]]] = []

    def _recreate_cm(self) -> Block[T]:
        """A decorated function opens a block of its own in each call."""
        return Block(self._make, self._model, self._outer)

    def __enter__(self) -> T:
        opened = self._make()
        model, session = self._model, opened.session
        guards = [weakref.finalize(self, close_session, model, session) for _ in range(_GUARDS)]
        self._opened.append((opened, guards))
        try:
            with Uninterrupted():
                open_session(model, session, self._outer)
        except BaseException:
            self._close()
            raise
        value: T = opened.value
        return value

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        finish = self._opened[-1][0].finish
        try:
            if kind is None and finish is not None:
                finish()
        finally:
            self._close()

    def _close(self) -> None:
        opened, guards = self._opened[-1]
        interrupt: BaseException | None = None
        closed, attempts = False, 0
        while not closed and attempts < _ATTEMPTS:
            attempts += 1
            try:
                with Uninterrupted():
                    close_session(self._model, opened.session)
                    closed = True
            except Exception:
                raise
            except BaseException as raised:
                interrupt = raised
        try:
            if not closed and interrupt is not None:
                raise interrupt  # the guards try again, when nothing keeps this block any more
            for guard in guards:
                guard.detach()
            self._opened.pop()
            if interrupt is not None:
                raise interrupt
        finally:
            del interrupt  # its traceback has this frame
