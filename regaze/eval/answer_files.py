"""Read answer files of other harnesses, row by row, for `answer_fields` and `answer_join`.

Layouts that are read:

lmms-eval
    DATE_samples_TASK.jsonl, a line per document: doc_id, target, filtered_resps, input.
VLMEvalKit
    MODEL_DATASET.xlsx, .tsv or .json (its PRED_FORMAT): index, question, answer, category, prediction.
regaze
    answers.jsonl of a run.
method repositories
    JSON lines or one JSON array: `answer` (POPE), `text` (LLaVA, VCD), `ans` (OPERA, PAI), `caption` (CHAIR),
    `response` (AMBER), `model_prediction` (HallusionBench).
MME
    TASK.txt, or a folder of them: image, question, right answer and answer between tabs.
maps, lists, answers within the questions
    See `answer_shapes`.

Names of fields are read in any capitalisation and with any sign between their words: Question-ID, questionId.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.answer_shapes import Placed, rows_of_map, split_record
from regaze.eval.comparison.conditions import PLAIN
from regaze.eval.files import read_headings, read_json, read_records, read_tab_separated, read_table
from regaze.eval.workbooks import read_workbook
from regaze.reading import StrPath, read_bytes, read_text

#: fields that may hold the model's answer
ANSWER_FIELDS = (
    *("filtered_resps", "resps", "prediction", "answer", "text", "ans", "caption", "response"),
    *("pred", "output", "model_answer", "model_output", "model_response", "generated_text"),
    *("model_prediction", "predict"),
)
LABEL_FIELDS = ("target", "label", "ground_truth", "gt_answer")
QUESTION_FIELDS = ("prompt", "input", "question", "query")
IMAGE_FIELDS = (
    *("image_id", "image", "image_path", "image_name", "file_name", "filename", "image_file"),
    *("image_source", "img", "img_id", "img_path", "img_name"),
)
SPLIT_FIELDS = ("split", "category")
ID_FIELDS = ("key", "question_id", "id", "index", "doc_id")
#: Last words of the names of further fields with ids.
_ID_WORDS = frozenset(
    {
        "id",
        "ids",
        "idx",
        "ix",
        "index",
        "number",
        "num",
        "nr",
        "no",
        "line",
        "row",
        "case",
        "entry",
        "unnamed",
    }
    | {"qid", "uid", "uuid", "sid", "questionid", "sampleid", "itemid", "docid", "recordid", "exampleid", "q"}
    | {"question", "sample", "item", "example", "record", "position", "pos", "order"}
)
#: Every name that is read, by its letters.
_USUAL = {
    re.sub(r"[\W_]", "", name): name
    for name in (
        *(*ANSWER_FIELDS, *LABEL_FIELDS, *QUESTION_FIELDS, *IMAGE_FIELDS, *SPLIT_FIELDS, *ID_FIELDS),
        *("condition", "benchmark", "error"),
    )
}


USUAL_NAMES = frozenset(_USUAL.values())


def words_of(name: str) -> list[str]:
    """The words in a field's name: ["sample", "id"] of sampleId, sample_ID and sample-id."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]


def is_id(name: str) -> bool:
    """Whether a field is called like an id; a table's column without a name counts its rows."""
    return (words_of(name) or ["id"])[-1] in _ID_WORDS


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
        """A text or whole number as text, "" for anything else; "doc.id" is `id` of the object `doc`."""
        value: Any = self.values
        for name in (field,) if field in self.values else field.split("."):
            value = unwrap(value.get(name) if isinstance(value, dict) else None)
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
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
    kind = _kind(path)
    if kind == ".pkl":
        raise InputError(
            f"{path} is a pickle, which may run programs; give the .xlsx, .tsv or .json beside it"
        )
    if is_mme(path):
        rows = [row for file in mme_files(path) for row in _read_mme(file)]
    else:
        read = _READERS.get(kind, _read_objects)
        found = ((f"{path}:{place}", value) for place, value in read(path))
        rows = [_check(row, source) for source, value in found for row in split_record(value, source)]
    if not rows:
        raise InputError(f"{path} holds no answers")
    return rows


def is_mme(path: Path) -> bool:
    """Whether a path is that of MME's result files: one of them, which is no JSON, or a folder."""
    if path.is_dir():
        return bool(mme_files(path))
    return _kind(path) == ".txt" and not read_bytes(path).lstrip().startswith((b"{", b"["))


def _kind(path: Path) -> str:
    """The suffix, without that of a packed file."""
    return Path(path.name.removesuffix(".gz")).suffix


def mme_files(path: Path) -> list[Path]:
    """The files of results, a task each."""
    return sorted(path.glob("*.txt")) if path.is_dir() else [path]


def _read_mme(path: Path) -> list[AnswerRow]:
    names = ("image", "question", "label", "response")
    return [
        AnswerRow(f"{path}:{line}", {**dict(zip(names, fields, strict=True)), "category": path.stem})
        for line, fields in read_tab_separated(path, (len(names),))
    ]


def rows_of_benchmark(rows: Sequence[AnswerRow], benchmark: str) -> list[AnswerRow]:
    """The rows of one benchmark in answers.jsonl of a run of several; all rows of any other file.

    Answers to POPE are answers to RePOPE, too.

    Raises:
        InputError: the file has answers to other benchmarks only.
    """
    if not is_run(rows):
        return list(rows)
    names = {str(row.values["benchmark"]) for row in rows}
    if benchmark == "repope" and benchmark not in names:
        benchmark = "pope"
    if benchmark not in names:
        path = rows[0].source.rpartition(":")[0]
        raise InputError(f"{path} holds answers to {', '.join(sorted(names))}, not to {benchmark}")
    return [row for row in rows if row.values["benchmark"] == benchmark]


def is_run(rows: Iterable[AnswerRow]) -> bool:
    """Whether rows are those of answers.jsonl of a run."""
    return all({"benchmark", "key", "condition", "answer"} <= row.values.keys() for row in rows)


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
    return AnswerRow(source, _with_usual_names(values, source))


def _with_usual_names(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The fields, those that are read by the names that they usually have."""
    renamed: dict[str, Any] = {}
    for name, value in values.items():
        new = usual_name(name, values)
        if new in renamed:
            raise InputError(f"{source}: several fields are called {new!r} but for their capitals and signs")
        renamed[new] = value
    return renamed


def usual_name(name: str, values: Mapping[str, Any]) -> str:
    """The name that a field usually has, unless there is another field of that name."""
    usual = _USUAL.get(re.sub(r"[\W_]", "", name).casefold(), name)
    return name if usual in values and name in values else usual


def _read_table(path: Path) -> Sequence[Placed]:
    delimiter = "\t" if _kind(path) == ".tsv" else ","
    table = read_table(path, read_headings(path, delimiter), delimiter=delimiter)
    return [(line, dict(row)) for line, row in table]


def _read_objects(path: Path) -> Sequence[Placed]:
    """JSON lines, an array, an object of columns (as pandas may write a table), or a map of answers."""
    if _kind(path) == ".json" and read_text(path).lstrip().startswith("{"):
        try:
            whole = read_json(path, controls=True)
        except InputError:  # JSON lines in a file called .json
            whole = None
        if isinstance(whole, dict) and whole:
            if any(usual_name(name, whole) in USUAL_NAMES for name in whole):
                is_table = all(isinstance(column, dict) for column in whole.values())
                return _rows_of_columns(whole, path) if is_table else [(1, whole)]
            if (rows := rows_of_map(whole)) is not None:
                return rows
    return read_records(path, "answers file ", controls=True)


def _rows_of_columns(columns: Mapping[str, dict[str, Any]], path: Path) -> Sequence[Placed]:
    index = next(iter(columns.values()))
    for name, column in columns.items():
        if column.keys() != index.keys():
            raise InputError(f"{path}: the column {name!r} has other rows than {next(iter(columns))!r}")
    return [
        (number, {name: column[place] for name, column in columns.items()})
        for number, place in enumerate(index, start=1)
    ]


_READERS: dict[str, Callable[[Path], Sequence[Placed]]] = {
    ".tsv": _read_table,
    ".csv": _read_table,
    ".xlsx": read_workbook,
}
