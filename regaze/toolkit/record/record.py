"""`Record`: attention statistics of real generations, small, on the CPU, in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from regaze.display import Summary, Tabular, first_lines, ranges
from regaze.errors import RecordingError
from regaze.reading import StrPath
from regaze.toolkit.record import storage
from regaze.toolkit.record.trace import Trace


@dataclass(eq=False, repr=False)
class Record(Tabular, Sequence[Trace]):
    """The traces of a `recording` block, in order; one per generation (a prefill and its decode steps).

    Attributes:
        header: versions, model and options, as JSON. traces: one per generation.
    """

    header: dict[str, Any]
    traces: list[Trace] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.traces)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trace]: ...
    def __getitem__(self, index: int | slice) -> Trace | list[Trace]:
        if not self.traces:
            raise RecordingError(
                "nothing is recorded yet: run the model inside the block and read the record after it"
            )
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise RecordingError(f"there is no trace {index}: the record has {len(self)}, numbered from 0")
        return self.traces[index]

    def __iter__(self) -> Iterator[Trace]:
        return iter(self.traces)

    def __repr__(self) -> str:
        count = f"{len(self.traces)} trace" + ("" if len(self.traces) == 1 else "s")
        lines = "\n".join([f"Record: {count}", *(f"  {trace!r}" for trace in self.traces)])
        return first_lines(lines)

    def table(self) -> dict[str, Sequence[Any]]:
        """The rows of all traces (`Trace`), with the number of the trace."""
        tables = [
            {"trace": [number] * len(table["layer"]), **table}
            for number, table in enumerate(trace.table() for trace in self.traces)
        ]
        names = dict.fromkeys(name for table in tables for name in table)
        return {
            name: [each for table in tables for each in table.get(name, [None] * len(table["layer"]))]
            for name in names
        }

    def _summary(self) -> Summary:
        """A row per trace."""
        columns = {
            "trace": range(len(self)),
            "layers": [ranges(trace.layers) for trace in self],
            "samples": [len(trace.row_active) for trace in self],
            "rows": [len(trace.row_step) for trace in self],
            "interventions": [trace.method_names for trace in self],
            "answer": ["".join(trace.answer_text()) for trace in self],
        }
        return Summary("Record: a row per trace", columns)

    def save(self, path: StrPath) -> None:
        """Write one safetensors file with a JSON header. Raises RecordingError where that cannot be done."""
        storage.write(path, self.header, self.traces)

    @classmethod
    def load(cls, path: StrPath) -> Record:
        """Read a file written by `save`. Raises RecordingError where it is not one."""
        return cls(*storage.read(path))
