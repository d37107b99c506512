"""Objects in COCO images, as CHAIR needs them: from instance masks, and from the five captions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.chair.plain_pickle import PlainObject, load_plain
from regaze.reading import LARGE_BYTES, StrPath, read_bytes

_PARTS = ("train2014", "val2014")
_OBJECTS = "coco2014_trainval_objects.json"
_PICKLE = "chair.pkl"
#: the class whose instance the pickle holds
_EVALUATOR = ("__main__", "CHAIR")


@dataclass(frozen=True)
class GroundTruth:
    """Objects of an image: known categories, and captions that may name more.

    Attributes:
        file: Name of the image where the annotations have it, else "".
    """

    objects: frozenset[str]
    captions: tuple[str, ...] = ()
    file: str = field(default="", compare=False)


def read_ground_truth(folder: StrPath, ids: Collection[int] | None = None) -> dict[int, GroundTruth]:
    """{image id: objects}, from the first of these that `folder` or `folder`/annotations has:

    * COCO's own instances_{train,val}2014.json and captions_{train,val}2014.json, at least those of one;
    * instances_*.json of another set in COCO's format, with captions_*.json of the same name where there are;
    * chair.pkl, which stand-alone ports and OPERA ship: finished sets, made with Pattern's singulars;
    * coco2014_trainval_objects.json: the same as {"names": [...], "images": {id: indices}}.

    Args:
        ids: Only these images; None for all.

    Raises:
        InputError: None of them exists, or one is malformed.
    """
    for place in (Path(folder), Path(folder, "annotations")):
        if found := _annotation_files(place):
            return _from_annotations(found, ids)
        if os.path.isfile(place / _PICKLE):
            return _select(_from_pickle(place / _PICKLE), ids)
        for name in (_OBJECTS, f"{_OBJECTS}.gz"):
            if os.path.isfile(place / name):
                return _select(_from_list(place / name), ids)
    raise InputError(
        f"{folder} has no ground truth: expected instances_val2014.json with captions_val2014.json, "
        f"{_PICKLE} or {_OBJECTS}"
    )


def require_categories(
    truth: Mapping[int, GroundTruth], known: Set[str], folder: StrPath, synonyms: str
) -> None:
    """Refuse objects that no caption could name, since the list of synonyms does not have them.

    Raises:
        InputError: Names the first.
    """
    for image_id, objects in truth.items():
        if unknown := sorted(objects.objects - known):
            raise InputError(
                f"{folder}: image {image_id} has {unknown[0]!r}, which begins no line of {synonyms}"
            )


def _select(truth: dict[int, GroundTruth], ids: Collection[int] | None) -> dict[int, GroundTruth]:
    return truth if ids is None else {image_id: truth[image_id] for image_id in ids if image_id in truth}


def _annotation_files(place: Path) -> list[tuple[Path, Path | None]]:
    """Pairs of an instances and a captions file: those of COCO 2014, else those of other sets.

    Captions belong to the ground truth of COCO 2014. Of other sets they are taken where there are some.
    """
    pairs = [(place / f"instances_{part}.json", place / f"captions_{part}.json") for part in _PARTS]
    if found := [pair for pair in pairs if os.path.isfile(pair[0])]:
        return [*found]
    others = [
        (path, path.with_name(path.name.replace("instances_", "captions_", 1)))
        for path in sorted(place.glob("instances_*.json"))
    ]
    return [(path, captions if os.path.isfile(captions) else None) for path, captions in others]


def _from_annotations(
    pairs: Sequence[tuple[Path, Path | None]], ids: Collection[int] | None
) -> dict[int, GroundTruth]:
    """From pairs of an instances file and a captions file."""
    names: dict[int, str] = {}
    objects: dict[int, set[str]] = {}
    captions: dict[int, list[str]] = {}
    selected: Callable[[int], bool] = (lambda image_id: True) if ids is None else set(ids).__contains__
    for instances, captioned in pairs:
        data = files.read_json(instances, LARGE_BYTES)
        for image_id, category in _instances(data, instances):
            if selected(image_id):
                objects.setdefault(image_id, set()).add(category)
        if "images" in data:
            listed = _entries(data, "images", instances, {"id": int, "file_name": str})
            names |= {each["id"]: each["file_name"] for each in listed if selected(each["id"])}
        data = {"annotations": []} if captioned is None else files.read_json(captioned, LARGE_BYTES)
        source = captioned or instances
        for each in _entries(data, "annotations", source, {"image_id": int, "caption": str}):
            if selected(each["image_id"]):
                captions.setdefault(each["image_id"], []).append(each["caption"])
    return {
        number: GroundTruth(
            frozenset(objects.get(number, ())), tuple(captions.get(number, ())), names.get(number, "")
        )
        for number in {**objects, **captions, **names}
    }


def _instances(data: Any, path: Path) -> Iterator[tuple[int, str]]:
    """(image id, category) of every annotated instance."""
    categories = _entries(data, "categories", path, {"id": int, "name": str})
    names = {each["id"]: each["name"] for each in categories}
    if len(names) < len(categories):
        raise InputError(f"{path}: two categories have one id")
    for each in _entries(data, "annotations", path, {"image_id": int, "category_id": int}):
        if each["category_id"] not in names:
            raise InputError(f"{path}: no category {each['category_id']!r}")
        yield each["image_id"], names[each["category_id"]]


def _entries(data: Any, key: str, path: Path, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """The list `data[key]`, checked to hold objects with fields of these types."""
    entries: list[dict[str, Any]] = files.require_field(data, key, list, str(path))
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(type(entry.get(name)) is not fields[name] for name in fields):
            expected = " and ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
            raise InputError(f"{path}: {key}[{index}] must have {expected}")
    return entries


def _from_list(path: Path) -> dict[int, GroundTruth]:
    data = files.read_json(path)
    names = files.require_texts(data, "names", str(path))
    images = files.require_field(data, "images", dict, str(path))
    truth: dict[int, GroundTruth] = {}
    for image_id, indices in images.items():
        fits = isinstance(indices, list) and all(type(i) is int and 0 <= i < len(names) for i in indices)
        if not fits or not re.fullmatch("[1-9][0-9]{0,17}", image_id):
            raise InputError(
                f"{path}: 'images' must map ids to indices of 'names', got {image_id!r}: {indices!r}"
            )
        truth[int(image_id)] = GroundTruth(frozenset(names[i] for i in indices))
    return truth


def _from_pickle(path: Path) -> dict[int, GroundTruth]:
    evaluator = load_plain(read_bytes(path), str(path), [_EVALUATOR])
    objects = evaluator.attributes.get("imid_to_objects") if isinstance(evaluator, PlainObject) else None
    if not isinstance(objects, dict):
        raise InputError(f"{path} is not CHAIR's pickled evaluator: it has no imid_to_objects")
    for image_id, names in objects.items():
        named = isinstance(names, (set, list)) and all(map(_is_text, names))
        if not (named and isinstance(image_id, int)):
            raise InputError(f"{path}: imid_to_objects must map ids to sets of names, {image_id!r} does not")
    return {image_id: GroundTruth(frozenset(names)) for image_id, names in objects.items()}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
