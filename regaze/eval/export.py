"""Write the answers of a run in the formats of other harnesses.

lmms-eval
    lmms-eval/MODEL/DATE_samples_TASK.jsonl, a line per document: doc_id, target, filtered_resps, input.
vlmevalkit
    vlmevalkit/MODEL/MODEL_TASK.tsv: index, question, answer, category, image_path, prediction.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.comparison.conditions import PLAIN
from regaze.eval.files import read_records
from regaze.eval.run.results import ANSWERS
from regaze.reading import StrPath
from regaze.writing import make_folder, replace_file

FORMATS = ("lmms-eval", "vlmevalkit")


def parse_formats(text: str) -> list[str]:
    """The formats of a list of names, separated by commas. Raises InputError for an unknown one."""
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    for kind in kinds:
        if kind not in FORMATS:
            raise InputError(f"unknown format {kind!r}; there are {', '.join(FORMATS)}")
    return list(dict.fromkeys(kinds))


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
    paths = []
    for (benchmark, condition), rows in groups.items():
        model = _file_name(results["model"]["name"] + ("" if condition == PLAIN else f"-{condition}"))
        if kind == "lmms-eval":
            date = _file_name(results["created"].split("+")[0].replace(":", "-"))
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
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "question", "answer", "category", "image_path", "prediction"])
    for number, row in enumerate(rows):
        image = row["image"] or ""
        writer.writerow([number, row["prompt"], row["label"], row["split"], image, row["answer"]])
    return out.getvalue()


def _file_name(text: str) -> str:
    """`text` without the characters that file systems refuse, replaced as lmms-eval does."""
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", text)
