"""Objects in COCO images, as CHAIR needs them: from instance masks, and from the five captions."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from regaze.errors import InputError
from regaze.eval import files
from regaze.reading import StrPath

_PARTS = ("train2014", "val2014")
_OBJECTS = "coco2014_trainval_objects.json"
_PICKLE = "chair.pkl"
#: limit of COCO's own files, which are larger than any other
COCO_BYTES = 2**30


@dataclass(frozen=True)
class GroundTruth:
    """Objects of an image: known categories, and captions that may name more."""

    objects: frozenset[str]
    captions: tuple[str, ...] = ()


def read_ground_truth(folder: StrPath, ids: Collection[int] | None = None) -> dict[int, GroundTruth]:
    """{image id: objects}, from the first of these that `folder` or `folder`/annotations has:

    * COCO's own instances_{train,val}2014.json and captions_{train,val}2014.json, at least those of val;
    * chair.pkl, which stand-alone ports and OPERA ship: finished sets, made with Pattern's singulars;
    * coco2014_trainval_objects.json: the same as {"names": [...], "images": {id: indices}}.

    Args:
        ids: Only these images; None for all.

    Raises:
        InputError: None of them exists, or one is malformed.
    """
    for place in (Path(folder), Path(folder, "annotations")):
        found = [
            (place / f"instances_{part}.json", place / f"captions_{part}.json")
            for part in _PARTS
            if (place / f"instances_{part}.json").is_file()
        ]
        if found:
            return _from_annotations(found, ids)
        if (place / _PICKLE).is_file():
            return _select(_from_pickle(place / _PICKLE), ids)
        for name in (_OBJECTS, f"{_OBJECTS}.gz"):
            if (place / name).is_file():
                return _select(_from_list(place / name), ids)
    raise InputError(
        f"{folder} has no ground truth: expected instances_val2014.json with captions_val2014.json, "
        f"{_PICKLE} or {_OBJECTS}"
    )


def _select(truth: dict[int, GroundTruth], ids: Collection[int] | None) -> dict[int, GroundTruth]:
    return truth if ids is None else {image_id: truth[image_id] for image_id in ids if image_id in truth}


def _from_annotations(
    pairs: Sequence[tuple[Path, Path]], ids: Collection[int] | None
) -> dict[int, GroundTruth]:
    """From pairs of an instances file and a captions file."""
    objects: dict[int, set[str]] = {}
    captions: dict[int, list[str]] = {}
    selected: Callable[[int], bool] = (lambda image_id: True) if ids is None else set(ids).__contains__
    for instances_path, captions_path in pairs:
        data = files.read_json(instances_path, COCO_BYTES)
        categories = _entries(data, "categories", instances_path, ("id", "name"))
        names = {each["id"]: each["name"] for each in categories}
        for each in _entries(data, "annotations", instances_path, ("image_id", "category_id")):
            if selected(each["image_id"]):
                if each["category_id"] not in names:
                    raise InputError(f"{instances_path}: no category {each['category_id']!r}")
                objects.setdefault(each["image_id"], set()).add(names[each["category_id"]])
        data = files.read_json(captions_path, COCO_BYTES)
        for each in _entries(data, "annotations", captions_path, ("image_id", "caption")):
            if selected(each["image_id"]):
                captions.setdefault(each["image_id"], []).append(each["caption"])
    return {
        image_id: GroundTruth(frozenset(objects.get(image_id, ())), tuple(captions.get(image_id, ())))
        for image_id in {**objects, **captions}
    }


def _entries(data: Any, key: str, path: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """The list `data[key]`, checked to hold objects with these fields."""
    entries: list[dict[str, Any]] = files.require_field(data, key, list, str(path))
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(name not in entry for name in fields):
            raise InputError(f"{path}: {key}[{index}] must have {' and '.join(fields)}")
    return entries


def _from_list(path: Path) -> dict[int, GroundTruth]:
    data = files.read_json(path)
    names = files.require_field(data, "names", list, str(path))
    images = files.require_field(data, "images", dict, str(path))
    try:
        return {
            int(image_id): GroundTruth(frozenset(names[i] for i in indices))
            for image_id, indices in images.items()
        }
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: 'images' must map ids to indices of 'names' ({error})") from error


class _Evaluator:
    """Stands in for the class whose instance chair.pkl holds."""


def _empty_dict(default_factory: Any = None) -> dict[Any, Any]:
    """A plain dictionary in place of a defaultdict."""
    return {}


class _RestrictedUnpickler(pickle.Unpickler):
    """Loads containers and that one class, and calls nothing else."""

    _ALLOWED: ClassVar = {
        ("__main__", "CHAIR"): _Evaluator,
        ("builtins", "set"): set,
        ("collections", "defaultdict"): _empty_dict,
        ("builtins", "list"): list,
        ("builtins", "dict"): dict,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._ALLOWED[module, name]


def _from_pickle(path: Path) -> dict[int, GroundTruth]:
    try:
        with path.open("rb") as file:
            evaluator = _RestrictedUnpickler(file).load()
        objects = evaluator.imid_to_objects
        return {int(image_id): GroundTruth(frozenset(names)) for image_id, names in objects.items()}
    except (pickle.UnpicklingError, AttributeError, EOFError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} is not CHAIR's pickled evaluator: {error}") from error
