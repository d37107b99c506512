"""Answer files of other harnesses: written from a run, and read to be scored here.

lmms-eval
    DATE_samples_TASK.jsonl, a line per document: doc_id, target, filtered_resps, input.
VLMEvalKit
    MODEL_DATASET.tsv (its PRED_FORMAT=tsv; or .json): index, question, answer, category, prediction.

Read are also this package's answers.jsonl and the files of the method repositories, JSON lines or one JSON
array: `answer` (POPE), `text` (LLaVA, VCD), `ans` (OPERA, PAI), `caption` (CHAIR), `response` (AMBER).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark, Item
from regaze.eval.comparison.conditions import PLAIN
from regaze.eval.files import output_errors, read_json, read_records, read_table, read_text, replace_file
from regaze.eval.run.results import ANSWERS

FORMATS = ("lmms-eval", "vlmevalkit")
#: where the answer stands, and what else is known of files that keep it there
_ANSWER_KEYS = ("filtered_resps", "resps", "prediction", "answer", "text", "ans", "caption", "response")
_LABEL_KEYS = ("target", "label", "ground_truth")
_QUESTION_KEYS = ("prompt", "input", "question", "query")
_SPLIT_KEYS = ("split", "category")
_NUMBER_KEYS = ("image_id", "id", "question_id")


@dataclass(frozen=True)
class Given:
    """One answer of a file.

    Attributes:
        answer: its text. source: "file:line".
        condition: the method it was given under, where the file says so.
        key: of the item, in files of this package. number: of the image or question, in those of others.
        question, label, split, image: what the file says of the question; "" where nothing.
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


def read(path: Path) -> list[Given]:
    """The answers of a file, in its order.

    Raises:
        InputError: it cannot be read, is in no known format, or a line has no answer; names the line.
    """
    if path.suffix in (".xlsx", ".pkl"):
        raise InputError(f"{path}: run VLMEvalKit with PRED_FORMAT=tsv, or save the table as .tsv or .json")
    records = _table(path) if path.suffix in (".tsv", ".csv") else _records(path)
    given = [_given(record, f"{path}:{line}") for line, record in records]
    if not given:
        raise InputError(f"{path} holds no answers")
    return given


def _table(path: Path) -> list[tuple[int, dict[str, Any]]]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    heading = next(csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter), [])
    return [(line, dict(row)) for line, row in read_table(path, heading, delimiter=delimiter)]


def _records(path: Path) -> list[tuple[int, Any]]:
    """JSON lines, an array, or (as pandas may write a table) an object of columns."""
    if path.suffix == ".json" and read_text(path).lstrip().startswith("{"):
        try:
            whole = read_json(path)
        except InputError:  # JSON lines in a file called .json
            whole = None
        if isinstance(whole, dict) and whole and all(isinstance(column, dict) for column in whole.values()):
            places = next(iter(whole.values()))
            return [
                (number, {name: column.get(place) for name, column in whole.items()})
                for number, place in enumerate(places, start=1)
            ]
    return list(read_records(path, "answers file "))


def _given(record: Any, source: str) -> Given:
    if not isinstance(record, dict):
        raise InputError(f"{source}: expected an object, got {type(record).__name__}")
    if "error" in record and "answer" not in record:
        raise InputError(
            f"{source}: this question failed ({record['error']}); run it again, or drop the line"
        )
    # VLMEvalKit calls the right answer "answer", and the model's "prediction".
    keys = [key for key in _ANSWER_KEYS if key in record]
    if not keys:
        raise InputError(f"{source}: no answer, which stands under one of {', '.join(_ANSWER_KEYS)}")
    answer = _first(record[keys[0]])
    if not isinstance(answer, str):
        raise InputError(f"{source}: {keys[0]!r} must be a text, got {record[keys[0]]!r}")
    label_keys = (*_LABEL_KEYS, *(["answer"] if keys[0] == "prediction" else []))
    return Given(
        answer,
        source,
        condition=str(record.get("condition", PLAIN)),
        key=str(record.get("key", "")),
        number=next((str(record[key]) for key in _NUMBER_KEYS if key in record), ""),
        question=_text(record, _QUESTION_KEYS),
        label=_text(record, label_keys).strip().lower(),
        split=_text(record, _SPLIT_KEYS),
        image=_text(record, ("image", "image_path")),
    )


def _first(value: Any) -> Any:
    """filtered_resps is ["Yes"], resps is [["Yes"]]."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _text(record: Mapping[str, Any], keys: Iterable[str]) -> str:
    return next((record[key] for key in keys if isinstance(record.get(key), str)), "")


# Joining ------------------------------------------------------------------------------------------------


def conditions(given: Sequence[Given]) -> dict[str, list[Given]]:
    """The answers of each condition; files of others have one."""
    out: dict[str, list[Given]] = {}
    for each in given:
        out.setdefault(each.condition, []).append(each)
    return out


def join(benchmark: Benchmark, given: Sequence[Given]) -> list[str]:
    """One answer per item of `benchmark`: by key where the file has keys, by number where its numbers are the
    items' keys, else by position.

    Raises:
        InputError: an item without an answer or with several, an answer to something else; names the line.
    """
    items = benchmark.items
    if {each.number for each in given} == {item.key for item in items}:
        given = [dataclasses.replace(each, key=each.number) for each in given]
    if all(each.key for each in given):
        by_key: dict[str, Given] = {}
        for each in given:
            if each.key in by_key:
                raise InputError(
                    f"{each.source}: a second answer to {each.key}, after {by_key[each.key].source}"
                )
            by_key[each.key] = each
        unknown = next((each for key, each in by_key.items() if key not in {i.key for i in items}), None)
        if unknown is not None:
            raise InputError(f"{unknown.source}: {benchmark.name} has no question {unknown.key!r}")
        absent = [item.key for item in items if item.key not in by_key]
        if absent:
            raise InputError(
                f"{len(absent)} of {len(items)} questions have no answer, the first is {absent[0]}"
            )
        return [by_key[item.key].answer for item in items]
    if len(given) != len(items):
        raise InputError(f"{len(given)} answers for {len(items)} questions of {benchmark.name}")
    for item, each in zip(items, given, strict=True):
        _check_same(item, each)
    return [each.answer for each in given]


def _check_same(item: Item, given: Given) -> None:
    if given.question and item.question.strip() not in given.question:
        raise InputError(f"{given.source} answers {given.question!r}, but {item.key} asks {item.question!r}")
    if given.label and item.label and given.label != item.label.strip().lower():
        raise InputError(
            f"{given.source}: its right answer is {given.label!r}, that of {item.key} {item.label!r}"
        )


def items_of(given: Sequence[Given], labels: Sequence[str]) -> tuple[Item, ...]:
    """The questions as the file itself tells them, for scorers that need the label alone.

    Raises:
        InputError: a line without a label, or with one that is not among `labels`.
    """
    items = []
    for number, each in enumerate(given, start=1):
        if each.label not in labels:
            raise InputError(
                f"{each.source}: its right answer is {each.label!r}, expected {' or '.join(labels)}; for a "
                "file without right answers say where the questions are"
            )
        image = Path(each.image) if each.image else None
        split = each.split or "answers"
        key = each.key or str(number)
        items.append(Item(key, split, image, each.question, each.label, each.source, reference=each.label))
    return tuple(items)


# Writing ------------------------------------------------------------------------------------------------


def export(folder: Path, results: Mapping[str, Any], kind: str) -> list[Path]:
    """Write the answers of a run's folder in another harness's format, into a sub-folder of its name.

    Raises:
        InputError: an unknown format, no answers, a folder that cannot be written.
    """
    if kind not in FORMATS:
        raise InputError(f"unknown format {kind!r}; there are {', '.join(FORMATS)}")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _, row in read_records(folder / ANSWERS):
        if "answer" in row:
            groups.setdefault((row["benchmark"], row["condition"]), []).append(row)
    paths = []
    for (benchmark, condition), rows in groups.items():
        model = _file_name(results["model"]["name"] + ("" if condition == PLAIN else f"-{condition}"))
        if kind == "lmms-eval":
            date = _file_name(results["created"].split("+")[0].replace(":", "-"))
            path = folder / kind / model / f"{date}_samples_{benchmark}.jsonl"
            text = "".join(
                json.dumps(_lmms_row(i, row), ensure_ascii=False) + "\n" for i, row in enumerate(rows)
            )
        else:
            path = folder / kind / model / f"{model}_{benchmark}.tsv"
            text = _vlmevalkit(rows)
        with output_errors(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
        paths.append(path)
    return paths


def _lmms_row(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "doc_id": number,
        "target": row["label"],
        "filtered_resps": [row["answer"]],
        "input": row["prompt"],
    }


def _vlmevalkit(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "question", "answer", "category", "image_path", "prediction"])
    for number, row in enumerate(rows):
        image = row["image"] or ""
        writer.writerow([number, row["prompt"], row["label"], row["split"], image, row["answer"]])
    return out.getvalue()


def _file_name(text: str) -> str:
    """`text` with what file systems dislike replaced, as lmms-eval does it."""
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", text)
