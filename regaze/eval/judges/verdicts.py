"""Stored verdicts: a file of JSON lines that judges append to, and that can replace a judge later."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from regaze.errors import InputError
from regaze.eval.files import cache_folder, parse_records
from regaze.reading import StrPath, read_text
from regaze.writing import LineLog, make_folder, require_writable

#: how a line begins
_START = '{"key": "'


@dataclass(frozen=True)
class Verdicts:
    """A file of verdicts, {"key", "judge", "prompt", "verdict"} per line, appended one by one.

    Raises:
        InputError: the file is damaged, or cannot be written.
    """

    path: StrPath
    _verdicts: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        require_writable(self.path)  # before the answers are made that the verdicts are about
        if os.path.lexists(self.path):
            for source, record in _records(self.path):
                self._verdicts[_text(record, "key", source)] = _text(record, "verdict", source)

    @classmethod
    def in_cache(cls) -> Verdicts:
        """The file in the user's cache folder."""
        return cls(cache_folder() / "judge" / "verdicts.jsonl")

    def get(self, key: str) -> str | None:
        """The verdict on a request; None when there is none yet."""
        return self._verdicts.get(key)

    def store(self, key: str, judge: Mapping[str, Any], prompt: str, verdict: str) -> None:
        """Append a verdict; it is on disk on return. Raises InputError when the file cannot be written."""
        line = json.dumps(
            {"key": key, "judge": judge, "prompt": prompt, "verdict": verdict}, ensure_ascii=False
        )
        with self._lock:
            try:
                make_folder(Path(self.path).parent)
                with FileLock(f"{os.fspath(self.path)}.lock"), LineLog(self.path) as log:
                    if _is_json(log.torn):  # a file written by hand may lack its last line break
                        log.append(log.torn)
                    log.append(line.encode())
            except OSError as error:
                raise InputError(
                    f"verdicts cannot be kept in {os.fspath(self.path)}: {error.strerror or error}"
                ) from error
            self._verdicts[key] = verdict


class RecordedJudge:
    """The verdicts of an earlier judge, by prompt, from a file as `Verdicts` writes it.

    Raises:
        InputError: the file cannot be read, or holds two different verdicts on one prompt.
    """

    def __init__(self, path: StrPath) -> None:
        self.name = f"recorded verdicts of {Path(path).name}"
        self._path = os.fspath(path)
        self._verdicts: dict[str, str] = {}
        for source, record in _records(path):
            prompt, verdict = _text(record, "prompt", source), _text(record, "verdict", source)
            if self._verdicts.setdefault(prompt, verdict) != verdict:
                raise InputError(f"{source}: another verdict on a prompt that already has one")

    def judge(self, prompts: Sequence[str]) -> list[str]:
        """The recorded verdicts. Raises InputError when one is missing."""
        missing = [prompt for prompt in prompts if prompt not in self._verdicts]
        if missing:
            raise InputError(
                f"{self._path} has no verdict on {len(missing)} of {len(prompts)} prompts; the first begins "
                f"{missing[0][:80]!r}"
            )
        return [self._verdicts[prompt] for prompt in prompts]


def _records(path: StrPath) -> list[tuple[str, Any]]:
    """The verdicts of a file, without a last line that is being written, or at which a process died."""
    path = os.fspath(path)
    text = read_text(path, "verdicts ")
    last = text[text.rfind("\n") + 1 :]
    if last and last.startswith(_START[: len(last)]) and not _is_json(last.encode()):
        text = text.removesuffix(last)
    return [(f"{path}:{line}", record) for line, record in parse_records(text, path, controls=True)]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _text(record: Any, key: str, source: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise InputError(f"{source}: expected an object with the text {key!r}, got {value!r}")
    return value
