"""Read answer files of other harnesses, row by row, for `answer_fields` and `answer_join`.

Layouts that are read:

lmms-eval
    DATE_samples_TASK.jsonl, a line per document: doc_id, target, filtered_resps, input.
VLMEvalKit
    MODEL_DATASET.tsv (its PRED_FORMAT=tsv; or .json): index, question, answer, category, prediction.
regaze
    answers.jsonl of a run.
method repositories
    JSON lines or one JSON array: `answer` (POPE), `text` (LLaVA, VCD), `ans` (OPERA, PAI), `caption` (CHAIR),
    `response` (AMBER).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.comparison.conditions import PLAIN
from regaze.eval.files import read_headings, read_json, read_records, read_table
from regaze.reading import StrPath, read_text


@dataclass(frozen=True)
class AnswerRow:
    """One line of an answer file.

    Attributes:
        source: "file:line".
        values: its fields as they stand.
    """

    source: str
    values: Mapping[str, Any]

    @property
    def condition(self) -> str:
        """The label of the method, in answers.jsonl."""
        return str(self.values.get("condition", PLAIN))

    def scalar(self, field: str) -> str:
        """A text or whole number as text, "" for anything else."""
        value = self.values.get(field)
        return str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""

    def text(self, *fields: str) -> str:
        """The text under the first of the fields that holds one, "" where none does.

        ["Yes"] (filtered_resps) and [["Yes"]] (resps) count as texts.
        """
        values = (unwrap(self.values.get(field)) for field in fields)
        return next((value for value in values if isinstance(value, str)), "")


def unwrap(value: Any) -> Any:
    """The text in ["Yes"] and in [["Yes"]]."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def read_answer_rows(path: StrPath) -> list[AnswerRow]:
    """The rows of a file, in its order.

    Raises:
        InputError: it cannot be read, is empty, or a line is no object or says that its question failed.
    """
    path = Path(path)
    if path.suffix in (".xlsx", ".pkl"):
        raise InputError(f"{path}: run VLMEvalKit with PRED_FORMAT=tsv, or save the table as .tsv or .json")
    found = _read_table(path) if path.suffix in (".tsv", ".csv") else _read_objects(path)
    rows = [_check(row, f"{path}:{line}") for line, row in found]
    if not rows:
        raise InputError(f"{path} holds no answers")
    return rows


def group_by_condition(rows: Iterable[AnswerRow]) -> dict[str, list[AnswerRow]]:
    """The rows of each condition; a file of another harness has one condition."""
    groups: dict[str, list[AnswerRow]] = {}
    for row in rows:
        groups.setdefault(row.condition, []).append(row)
    return groups


def _check(values: Any, source: str) -> AnswerRow:
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected an object, got {type(values).__name__}")
    if "error" in values and "answer" not in values:
        raise InputError(
            f"{source}: this question failed ({values['error']}); run it again, or drop the line"
        )
    return AnswerRow(source, values)


def _read_table(path: Path) -> list[tuple[int, dict[str, Any]]]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    table = read_table(path, read_headings(path, delimiter), delimiter=delimiter)
    return [(line, dict(row)) for line, row in table]


def _read_objects(path: Path) -> Sequence[tuple[int, Any]]:
    """JSON lines, an array, or (as pandas may write a table) an object of columns."""
    if path.suffix == ".json" and read_text(path).lstrip().startswith("{"):
        try:
            whole = read_json(path, controls=True)
        except InputError:  # JSON lines in a file called .json
            whole = None
        if isinstance(whole, dict) and whole and all(isinstance(column, dict) for column in whole.values()):
            return _rows_of_columns(whole, path)
    return read_records(path, "answers file ", controls=True)


def _rows_of_columns(columns: Mapping[str, dict[str, Any]], path: Path) -> Sequence[tuple[int, Any]]:
    index = next(iter(columns.values()))
    for name, column in columns.items():
        if column.keys() != index.keys():
            raise InputError(f"{path}: the column {name!r} has other rows than {next(iter(columns))!r}")
    return [
        (number, {name: column[place] for name, column in columns.items()})
        for number, place in enumerate(index, start=1)
    ]
