"""Answers that do not come as one record each: maps, lists of texts, and questions that hold their answers.

{id: text}, {part: {id: text}}
    As of MM-Vet, and of POPE by split.
[text, ...], {part: [text, ...]}, {part: [[text, text], ...]}
    In the order of the questions; pairs as of VideoHallucer.
VideoHallucer
    Its question files with `predict` beside each question of a pair.
VLind-Bench
    Its data.json with `MODEL_pred_a1_image`, ..., `MODEL_pred_d2` in each instance.
DASH-B
    [object, image, right answer, answer], of which the first three are the key.
lmms-eval
    Samples, whose metrics hold the publisher's ids and categories.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from regaze.errors import InputError

#: (place in the file, record)
Placed = tuple[int | str, Any]

#: Fields of lmms-eval's metrics that describe the question, in its tasks for the benchmarks here.
_OF_QUESTION = (
    *("question_id", "image_id", "image", "image_path", "image_name", "filename", "category", "split"),
    *("subcategory", "set_id", "figure_id", "visual_input"),
)
_SIDES = ("basic", "hallucination")
_VLIND = re.compile(r"(.+)_pred_([abc][12])(?:_image)?|(.+)_pred_(d[12])")


def rows_of_map(whole: Mapping[str, Any]) -> list[Placed] | None:
    """The answers of {id: text}, {part: {id: text}}, {part: [text, ...]} and {part: [[text, ...], ...]}.

    Returns:
        None for an object with anything but texts in it, or nested differently.
    """
    leaves = list(_leaves(whole, ()))
    depth = {len(path) for path, _ in leaves}
    if not leaves or len(depth) > 1 or any(text is None for _, text in leaves):
        return None
    return [(_place(path), {**_fields(path), "response": text}) for path, text in leaves]


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str | None]]:
    """(path, text) of all leaves; None for one that is no text, or in another place than those above."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in path) and len(path) < 2:
        for key, each in value.items():
            yield from _leaves(each, (*path, str(key)))
    elif isinstance(value, list) and 0 < len(path) < 3:
        for number, each in enumerate(value):
            yield from _leaves(each, (*path, number))
    else:
        yield path, None


def _place(path: tuple[str | int, ...]) -> str:
    return "/".join(str(part).replace(":", "") for part in path)


def _fields(path: tuple[str | int, ...]) -> dict[str, Any]:
    *parts, last = path
    if isinstance(last, str):
        return {**({"category": parts[0]} if parts else {}), "question_id": last}
    return {"category": path[0]}


def split_record(record: Any, source: str) -> list[Any]:
    """The records of an element that holds several answers; any other one alone.

    Raises:
        InputError: it holds answers of several models.
    """
    if isinstance(record, str):
        return [{"response": record}]
    if isinstance(record, list) and len(record) == 4 and record[2] in ("yes", "no"):
        thing, name, truth, answer = record
        return [{"question_id": f"{thing}/{name}/{truth}", "label": truth, "response": answer}]
    if not isinstance(record, dict):
        return [record]
    sides = {name: side for name in _SIDES if isinstance(side := record.get(name), dict)}
    if len(sides) == len(_SIDES):
        return [{**side, "side": name} for name, side in sides.items()]
    if "aggregated_human_label_good_images" in record:  # without good pictures there are no answers
        return _vlind_rows(record, source)
    return [_with_metrics(record)]


def _vlind_rows(record: dict[str, Any], source: str) -> list[Any]:
    """One row per statement of each test, and in test d per picture: "17/a1", "17/d2/5"."""
    found = [(key, match) for key in record if (match := _VLIND.fullmatch(key))]
    models = {match[1] or match[3] for _, match in found}
    if len(models) > 1:
        raise InputError(
            f"{source}: answers of the models {', '.join(sorted(models))}; leave one in the file"
        )
    instance, rows = record.get("global_id"), list[Any]()
    for key, match in found:
        test, value = match[2] or match[4], record[key]
        answers = value if test.startswith("d") else {"": value}
        if not isinstance(answers, dict) or not all(isinstance(each, dict) for each in answers.values()):
            raise InputError(f"{source}: {key!r} must hold a response, got {value!r}")
        for picture, each in answers.items():
            own_id = "/".join(filter(None, (str(instance), test, picture)))
            rows.append({"question_id": own_id, "test": test, "response": each.get("response")})
    return rows


def _with_metrics(record: dict[str, Any]) -> dict[str, Any]:
    """A sample of lmms-eval with what its metrics, or its `doc`, say of the question."""
    if "doc_id" not in record or not {"resps", "filtered_resps"} & record.keys():
        return record
    known = dict(record)
    for part in [each for each in record.values() if isinstance(each, dict)]:
        for name in (name for name in _OF_QUESTION if isinstance(part.get(name), str | int)):
            known.setdefault(name, part[name])
    return known
