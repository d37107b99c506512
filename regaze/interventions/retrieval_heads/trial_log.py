"""A log of trials on disk, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from regaze.errors import InputError
from regaze.reading import StrPath, read_bytes
from regaze.writing import LineLog, make_folder

#: How every line of a log starts.
_START = b'{"key": "'
_MAX_BYTES = 2**33


class LogEntry(BaseModel):
    """What every line of a log holds, whatever its trial."""

    model_config = ConfigDict(strict=True)

    key: str
    recall: Annotated[float, Field(ge=0.0, le=1.0)]


class TrialLog:
    """JSON lines, one per trial, each with the trial's key.

    A key is a hash of everything that decides a trial's outcome. A run therefore finds the trials of an
    earlier run, interrupted or with other lengths, and never those of another model, text or question.

    Args:
        path: the file, continued where it exists; None writes nothing.

    Raises:
        InputError: the file cannot be read or written, or is not such a log.
    """

    def __init__(self, path: StrPath | None):
        self.path = None if path is None else Path(path)
        self._entries: dict[str, dict[str, Any]] = {}
        if self.path is None:
            return
        make_folder(self.path.parent)
        try:
            self._log = LineLog(self.path)
        except OSError as error:
            raise InputError(f"log {str(self.path)!r} cannot be used: {error.strerror or error}") from error
        try:
            self._read(self._log.torn)
        except InputError:
            self._log.close()
            raise

    def _read(self, torn: bytes) -> None:
        """Read the entries. `torn`: a last line at which the run was killed, unless this is another file."""
        lines = read_bytes(self.path or "", "log ", _MAX_BYTES).removesuffix(torn).split(b"\n")[:-1]
        if torn and _START[: len(torn)] != torn[: len(_START)]:
            lines.append(torn)
        for line in lines:
            try:
                key = LogEntry.model_validate_json(line).key
                self._entries[key] = json.loads(line)
            except (ValueError, RecursionError):
                shown = line[:60].decode("utf-8", "replace")
                raise InputError(f"{str(self.path)!r} is not a log of trials: {shown!r}") from None

    def get_or_run(
        self, key: str, run: Callable[[], dict[str, Any]], schema: type[BaseModel] | None = None
    ) -> dict[str, Any]:
        """The entry under `key`; where there is none, the result of `run`, which is then on disk.

        Raises:
            InputError: the entry is in the file, but does not fit `schema`.
        """
        if key in self._entries and schema is not None:
            try:
                schema.model_validate_json(json.dumps(self._entries[key]))
            except ValueError:
                raise InputError(f"{str(self.path)!r}: the trial with key {key!r} is damaged") from None
        if key not in self._entries:
            start = time.perf_counter()
            entry = run()
            seconds = round(time.perf_counter() - start, 2)
            self._entries[key] = {"key": key, "seconds": seconds, **entry}
            if self.path is not None:
                self._append(self._entries[key])
        return self._entries[key]

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            self._log.append(json.dumps(entry, ensure_ascii=False).encode(errors="backslashreplace"))
        except OSError as error:
            raise InputError(f"log {str(self.path)!r} cannot be written: {error.strerror}") from error

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self.path is not None:
            self._log.close()
