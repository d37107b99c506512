"""Read answer files of other harnesses and match the answers to the items of a benchmark.

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

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark, Item
from regaze.eval.comparison.conditions import PLAIN
from regaze.eval.files import read_json, read_records, read_table, read_text

#: fields that may hold the answer, the label, the question, the split and the number of a question or image
_ANSWER_FIELDS = ("filtered_resps", "resps", "prediction", "answer", "text", "ans", "caption", "response")
_LABEL_FIELDS = ("target", "label", "ground_truth")
_QUESTION_FIELDS = ("prompt", "input", "question", "query")
_SPLIT_FIELDS = ("split", "category")
_NUMBER_FIELDS = ("image_id", "id", "question_id")


@dataclass(frozen=True)
class AnswerRecord:
    """One answer of a file. What the file does not say is "".

    Attributes:
        answer: its text. source: "file:line".
        condition: the label of the method, in answers.jsonl.
        key: of the item, in answers.jsonl. number: of the image or question, in other files.
        question, label, split, image: what the file says of the question.
    """

    answer: str
    source: str
    condition: str = PLAIN
    key: str = ""
    number: str = ""
    question: str = ""
    label: str = ""
    split: str = ""
    image: str = ""


# Reading ------------------------------------------------------------------------------------------------


def read_answers(path: Path) -> list[AnswerRecord]:
    """The answers of a file, in its order.

    Raises:
        InputError: it cannot be read, has no known layout, or a line has no answer; names the line.
    """
    if path.suffix in (".xlsx", ".pkl"):
        raise InputError(f"{path}: run VLMEvalKit with PRED_FORMAT=tsv, or save the table as .tsv or .json")
    rows = _read_rows(path) if path.suffix in (".tsv", ".csv") else _read_objects(path)
    records = [_to_record(row, f"{path}:{line}") for line, row in rows]
    if not records:
        raise InputError(f"{path} holds no answers")
    return records


def _read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    heading = next(csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter), [])
    return [(line, dict(row)) for line, row in read_table(path, heading, delimiter=delimiter)]


def _read_objects(path: Path) -> list[tuple[int, Any]]:
    """JSON lines, an array, or (as pandas may write a table) an object of columns."""
    if path.suffix == ".json" and read_text(path).lstrip().startswith("{"):
        try:
            whole = read_json(path)
        except InputError:  # JSON lines in a file called .json
            whole = None
        if isinstance(whole, dict) and whole and all(isinstance(column, dict) for column in whole.values()):
            index = next(iter(whole.values()))
            return [
                (number, {name: column.get(place) for name, column in whole.items()})
                for number, place in enumerate(index, start=1)
            ]
    return list(read_records(path, "answers file "))


def _to_record(row: Any, source: str) -> AnswerRecord:
    if not isinstance(row, dict):
        raise InputError(f"{source}: expected an object, got {type(row).__name__}")
    if "error" in row and "answer" not in row:
        raise InputError(f"{source}: this question failed ({row['error']}); run it again, or drop the line")
    field = next((name for name in _ANSWER_FIELDS if name in row), None)
    if field is None:
        raise InputError(f"{source}: no answer, which stands under one of {', '.join(_ANSWER_FIELDS)}")
    answer = _unwrap(row[field])
    if not isinstance(answer, str):
        raise InputError(f"{source}: {field!r} must be a text, got {row[field]!r}")
    # VLMEvalKit calls the label "answer", and the model's answer "prediction".
    label_fields = (*_LABEL_FIELDS, *(["answer"] if field == "prediction" else []))
    return AnswerRecord(
        answer,
        source,
        condition=str(row.get("condition", PLAIN)),
        key=str(row.get("key", "")),
        number=next((str(row[name]) for name in _NUMBER_FIELDS if name in row), ""),
        question=_first_text(row, _QUESTION_FIELDS),
        label=_first_text(row, label_fields).strip().lower(),
        split=_first_text(row, _SPLIT_FIELDS),
        image=_first_text(row, ("image", "image_path")),
    )


def _unwrap(value: Any) -> Any:
    """The text in ["Yes"] (filtered_resps) and in [["Yes"]] (resps)."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _first_text(row: Mapping[str, Any], fields: Iterable[str]) -> str:
    return next((row[name] for name in fields if isinstance(row.get(name), str)), "")


# Matching -----------------------------------------------------------------------------------------------


def group_by_condition(records: Sequence[AnswerRecord]) -> dict[str, list[AnswerRecord]]:
    """The answers of each condition; a file of another harness has one condition."""
    groups: dict[str, list[AnswerRecord]] = {}
    for record in records:
        groups.setdefault(record.condition, []).append(record)
    return groups


def match_answers(benchmark: Benchmark, records: Sequence[AnswerRecord]) -> list[str]:
    """One answer per item of `benchmark`.

    Records are matched by key where the file has keys, by number where its numbers are the items' keys, else
    by position.

    Raises:
        InputError: an item without an answer or with several, an answer to another question; names the line.
    """
    items = benchmark.items
    if {record.number for record in records} == {item.key for item in items}:
        records = [dataclasses.replace(record, key=record.number) for record in records]
    if all(record.key for record in records):
        return _match_by_key(benchmark, records)
    if len(records) != len(items):
        raise InputError(f"{len(records)} answers for {len(items)} questions of {benchmark.name}")
    for item, record in zip(items, records, strict=True):
        _check_same_question(item, record)
    return [record.answer for record in records]


def _match_by_key(benchmark: Benchmark, records: Sequence[AnswerRecord]) -> list[str]:
    keys = [item.key for item in benchmark.items]
    by_key: dict[str, AnswerRecord] = {}
    for record in records:
        if record.key in by_key:
            raise InputError(
                f"{record.source}: a second answer to {record.key}, after {by_key[record.key].source}"
            )
        by_key[record.key] = record
    known = set(keys)
    unknown = next((record for key, record in by_key.items() if key not in known), None)
    if unknown is not None:
        raise InputError(f"{unknown.source}: {benchmark.name} has no question {unknown.key!r}")
    missing = [key for key in keys if key not in by_key]
    if missing:
        raise InputError(f"{len(missing)} of {len(keys)} questions have no answer, the first is {missing[0]}")
    return [by_key[key].answer for key in keys]


def _check_same_question(item: Item, record: AnswerRecord) -> None:
    if record.question and item.question.strip() not in record.question:
        raise InputError(
            f"{record.source} answers {record.question!r}, but {item.key} asks {item.question!r}"
        )
    if record.label and item.label and record.label != item.label.strip().lower():
        raise InputError(
            f"{record.source}: its right answer is {record.label!r}, that of {item.key} {item.label!r}"
        )


def items_from_answers(records: Sequence[AnswerRecord], labels: Sequence[str]) -> tuple[Item, ...]:
    """The questions as the answer file itself describes them, for scorers that need only the label.

    Raises:
        InputError: a line without a label, or with one that is not among `labels`.
    """
    items = []
    for number, record in enumerate(records, start=1):
        if record.label not in labels:
            raise InputError(
                f"{record.source}: its right answer is {record.label!r}, expected {' or '.join(labels)}; for "
                "a file without right answers say where the questions are"
            )
        image = Path(record.image) if record.image else None
        items.append(
            Item(
                record.key or str(number),
                record.split or "answers",
                image,
                record.question,
                record.label,
                record.source,
                reference=record.label,
            )
        )
    return tuple(items)
