"""`EngineRecorder`: the recorder of a request, and the records that are open where the model runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from regaze.errors import InputError
from regaze.reading import StrPath
from regaze.serving.records import ServedModel, unpacked
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.record.options import RecordOptions
from regaze.toolkit.record.recorder import Recorder
from regaze.toolkit.record.trace import STATISTICS, Trace

_log = logging.getLogger(__name__)


class EngineRecorder(Recorder):
    """The recorder of one request."""

    inactive = frozenset({"on_chosen"})  # the scheduler gives the whole answer at its end

    def __init__(self, options: RecordOptions, config: Any, tokenizer: Any):
        super().__init__(options, ServedModel(config), tokenizer)

    @property
    def prompt_needs(self) -> str:  # type: ignore[override]
        return "" if self.options.rows in ("last", 1) else "rows"

    def save(self, path: StrPath, output_ids: Sequence[int]) -> None:
        """Write the record of a request with this answer. Raises RecordingError where it cannot be done."""
        self.set_answer(torch.tensor([list(output_ids)]))
        self.finish()
        self.record.traces[:] = [_until(trace, len(output_ids)) for trace in self.record.traces]
        self.record.save(path)


def _until(trace: Trace, count: int) -> Trace:
    """The rows that predict the first `count` tokens of the answer: an engine may run one more ahead."""
    kept = trace.row_step < count
    if bool(kept.all()):
        return trace
    found = {
        name: part[..., kept, :] if part.dim() == 5 else part[..., kept]
        for name in STATISTICS
        if (part := getattr(trace, name)) is not None
    }
    return replace(
        trace,
        row_position=trace.row_position[kept],
        row_step=trace.row_step[kept],
        row_active=trace.row_active[:, kept],
        **found,
    )


# Requests that run in this process ------------------------------------------------------------------------


@dataclass
class _Open:
    recorder: EngineRecorder
    file: str


_open: dict[str, _Open] = {}


def begin_record(
    name: str, carried: Mapping[str, Any], config: Any, tokenizer: Any, *, writes: bool = True
) -> Callback:
    """The recorder of a request that begins; `name` is that of the engine inside.

    Args:
        writes: whether this process writes the record, of several that measure it.
    """
    options, file = unpacked(carried)
    recorder = EngineRecorder(options, config, tokenizer)
    if writes:
        _open[name] = _Open(recorder, file)
    return recorder


def end_record(name: str, output_ids: Sequence[int] | None) -> bool:
    """A request has ended with this answer (None: it has failed): write its record.

    Returns:
        Whether it began in this process.
    """
    found = _open.pop(name, None)
    if found is None or output_ids is None:
        return found is not None
    try:
        if Path(found.file).exists():
            raise InputError(f"{found.file} is there already")
        found.recorder.save(found.file, output_ids)
    except Exception as error:  # in an engine, an error would end all requests
        _log.warning("regaze: the record of %s was not written: %s", name, error)
    return True
