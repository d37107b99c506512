"""SIGINT, SIGTERM and SIGHUP end the process at once, with one line and the exit code 128 + n.

Nothing is unwound. What a run has to keep is on disk by then (`regaze.writing`), as for a process that is
killed; and an exception could be swallowed by whatever is running (an import, a callback, a `__del__`), or
become a traceback. Python calls the handler between two instructions of the main thread. A thread that waits
for the same signals ends the process where that would take long: in a collective that waits for the other
processes, in a long kernel.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
#: Seconds to wait until the line can be written.
_PATIENCE = 1.0
_CLEAR_LINE, _SHOW_CURSOR = "\r\x1b[K", "\x1b[?25h"


class Interrupt:
    """What happens on a signal.

    Attributes:
        advice: what the line says besides the signal's name.
        drawing: a progress bar is on the terminal, which has to be cleared.
        code: the exit code of the command, once everything is done; no line is printed then.
    """

    def __init__(self) -> None:
        self.advice = ""
        self.drawing = False
        self.code: int | None = None
        self._numbers: dict[int, str] = {}
        self._once = threading.Lock()

    def install(self) -> None:
        """Handle the signals from now on. One that is ignored, as under nohup, stays so."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._numbers[number] = name
                signal.signal(number, self._handle)
        if not self._numbers or os.name == "nt":
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
        os.register_at_fork(
            before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, [*self._numbers]),
            after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, [*self._numbers]),
            after_in_child=self._leave_to_default,
        )

    def leave(self) -> None:
        """End the process without clearing its modules, where Python no longer handles signals.

        Called when everything else that has to be done at exit is done, the streams included.
        """
        if self.code is not None:
            os._exit(self.code)

    def _watch(self, reader: int) -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in self._numbers:
                    self._handle(number)

    def _handle(self, number: int, frame: Any = None) -> None:
        if not self._once.acquire(blocking=False):  # a second signal, or the other thread
            return
        if self.code is not None:
            os._exit(self.code)
        self._remove_unfinished()
        if os.environ.get("RANK", "0") == "0":  # of several processes the first speaks
            self._say(f"regaze: stopped by {self._numbers[number]}{self.advice}\n")
        os._exit(128 + number)

    def _say(self, line: str) -> None:
        if self.drawing and os.isatty(2):
            line = f"{_CLEAR_LINE}{_SHOW_CURSOR}{line}"
        with suppress(OSError, ValueError):  # the stream is closed, or its disk full
            # A pipe may be full that nobody reads. Windows can wait for sockets alone.
            if os.name == "nt" or select.select([], [2], [], _PATIENCE)[1]:
                os.write(2, line.encode("utf-8", "replace"))

    def _remove_unfinished(self) -> None:
        writing = sys.modules.get("regaze.writing")  # not imported: nothing was written
        for path in tuple(getattr(writing, "unfinished", ())):
            with suppress(OSError):
                os.unlink(path)

    def _leave_to_default(self) -> None:
        """In a forked process: it has no thread that waits, and its signals must not reach the parent."""
        signal.set_wakeup_fd(-1)
        for number in self._numbers:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*self._numbers])


#: of this process
current = Interrupt()
