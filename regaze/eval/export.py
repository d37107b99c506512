"""Write the answers of a run in the formats of other harnesses.

lmms-eval
    lmms-eval/MODEL/DATE_samples_TASK.jsonl, a line per document: doc_id, target, filtered_resps, input.
vlmevalkit
    vlmevalkit/MODEL/MODEL_TASK.tsv: index, question, answer, category, image_path, prediction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.comparison.conditions import PLAIN
from regaze.eval.files import read_records, table_text
from regaze.eval.run.results import ANSWERS
from regaze.names import find_name, known_name, suggestion
from regaze.reading import StrPath
from regaze.visible import file_names
from regaze.writing import make_folder, replace_file

FORMATS = ("lmms-eval", "vlmevalkit")


def parse_formats(text: str) -> list[str]:
    """The formats of a list of names, separated by commas. Raises InputError for an unknown one."""
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    for kind in kinds:
        if find_name(kind, FORMATS) is None:
            raise InputError(f"unknown format {kind!r}{suggestion(kind, FORMATS)}")
    return list(dict.fromkeys(known_name(kind, FORMATS) for kind in kinds))


def export_answers(folder: StrPath, results: Mapping[str, Any], kind: str) -> list[Path]:
    """Write the answers of a run's folder into a sub-folder that is called like the format.

    Raises:
        InputError: an unknown format, no answers, a folder that cannot be written.
    """
    (kind,) = parse_formats(kind)
    folder, groups = Path(folder), dict[tuple[str, str], list[dict[str, Any]]]()
    for _, row in read_records(folder / ANSWERS, controls=True):
        if "answer" in row:
            groups.setdefault((row["benchmark"], row["condition"]), []).append(row)
    paths, name_of = [], results["model"]["name"]
    models = {label: name_of + ("" if label == PLAIN else f"-{label}") for _, label in groups}
    folders = file_names(models.values())
    for (benchmark, condition), rows in groups.items():
        model = folders[models[condition]]
        if kind == "lmms-eval":
            date = results["created"].split("+")[0].replace(":", "-")
            name, text = f"{date}_samples_{benchmark}.jsonl", _lmms_eval(rows)
        else:
            name, text = f"{model}_{benchmark}.tsv", _vlmevalkit(rows)
        path = make_folder(folder / kind / model) / name
        replace_file(path, text)
        paths.append(path)
    return paths


def _lmms_eval(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        {
            "doc_id": number,
            "target": row["label"],
            "filtered_resps": [row["answer"]],
            "input": row["prompt"],
        }
        for number, row in enumerate(rows)
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _vlmevalkit(rows: Sequence[Mapping[str, Any]]) -> str:
    table: list[Sequence[Any]] = [("index", "question", "answer", "category", "image_path", "prediction")]
    for number, row in enumerate(rows):
        values = row["prompt"], row["label"], row["split"], row["image"] or "", row["answer"]
        table.append((number, *values))
    return table_text(table, "\t")
