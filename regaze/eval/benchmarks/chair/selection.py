"""Which images are captioned: given by their ids, or drawn from a folder of photographs."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common.ids import image_stem
from regaze.reading import StrPath, read_text

IMAGE_NAME = "COCO_val2014_{:012d}.jpg"
#: What stands before the number in the names of COCO's photographs.
PREFIX = r"COCO_[a-z]+\d+_"
_IDS = re.compile(r"\s*\d+\s*(,\s*\d+\s*)*")


def choose_images(
    ids: Sequence[int] | StrPath | None, folder: Path, sample: int, seed: int
) -> tuple[list[int], str]:
    """(image ids, how they were chosen).

    Args:
        ids: The ids, as numbers or as a text with commas between; or a file of ids, names of photographs, or
            records with `image_id`, such as published captions. None draws `sample` photographs of `folder`.

    Raises:
        InputError: An id is no number or comes twice; the file or the folder is missing.
    """
    if ids is None:
        return _draw(folder, sample, seed)
    if not isinstance(ids, str | os.PathLike):
        return _numbers([(f"ids, number {at}", each) for at, each in enumerate(ids, start=1)]), "given ids"
    if isinstance(ids, str) and _IDS.fullmatch(ids) and not os.path.isfile(ids):
        return _numbers([("ids", each) for each in ids.split(",")]), "given ids"
    return _numbers(_read_ids(ids)), f"ids of {Path(ids).name}"


def _read_ids(path: StrPath) -> list[tuple[str, object]]:
    """(place, id) of a file: words and lines, or JSON."""
    text = read_text(path)
    if not text.lstrip().startswith(("[", "{")):
        return [
            (f"{os.fspath(path)}:{line}", word)
            for line, words in enumerate(text.split("\n"), start=1)
            for word in words.replace(",", " ").split()
        ]
    found = []
    for line, record in files.parse_records(text, path, controls=True):
        source = f"{os.fspath(path)}:{line}"
        is_record = isinstance(record, dict)
        value = files.require_field(record, "image_id", (int, str), source) if is_record else record
        found.append((source, value))
    return found


def _numbers(found: Sequence[tuple[str, object]]) -> list[int]:
    """The ids as numbers, however they are spelt."""
    first: dict[int, str] = {}
    for source, value in found:
        name = "" if isinstance(value, bool) else image_stem(str(value), PREFIX)
        if not re.fullmatch("[0-9]{1,18}", name):
            raise InputError(f"{source}: expected the id of an image, got {value!r}")
        if (number := int(name)) in first:
            raise InputError(f"{source}: image {number} a second time, after {first[number]}")
        first[number] = source
    if not first:
        raise InputError("ids: expected at least one id of an image, got none")
    return list(first)


def _draw(folder: Path, sample: int, seed: int) -> tuple[list[int], str]:
    try:
        files.require_folder(folder, "image folder")
    except InputError as error:
        raise InputError(f"{error}; without one, say by ids which images are meant") from error
    names = [path.stem for path in folder.glob("COCO_val2014_*.jpg")]
    available = sorted(int(name[-12:]) for name in names if re.fullmatch(r"COCO_val2014_[0-9]{12}", name))
    if not available:
        raise InputError(
            f"{folder} has no photographs named {IMAGE_NAME.format(0)}; of a set of your own say which by ids"
        )
    count = min(sample, len(available))
    drawn = random.Random(seed).sample(available, count)
    return drawn, f"{count} of {len(available)} with seed {seed}"
