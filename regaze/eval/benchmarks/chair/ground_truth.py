"""What is in COCO images, as CHAIR needs it: instance masks, and objects that the five captions name."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from regaze.errors import InputError
from regaze.eval import files

_PARTS = ("train2014", "val2014")
_OBJECTS = "coco2014_trainval_objects.json"
_PICKLE = "chair.pkl"


@dataclass(frozen=True)
class Truth:
    """What is in an image: categories known to be there, and captions that name more of them."""

    objects: frozenset[str]
    captions: tuple[str, ...] = ()


def read_truth(folder: Path, ids: Collection[int] | None = None) -> dict[int, Truth]:
    """{image id: what is there}, from the first of these that `folder` or `folder`/annotations has:

    * COCO's own instances_{train,val}2014.json and captions_{train,val}2014.json, at least those of val;
    * chair.pkl, which stand-alone ports and OPERA ship: finished sets, made with Pattern's singulars;
    * coco2014_trainval_objects.json: the same as {"names": [...], "images": {id: indices}}.

    Args:
        ids: only these images; None for all.

    Raises:
        InputError: none of them is there, or one is malformed.
    """
    for place in (folder, folder / "annotations"):
        found = [
            (place / f"instances_{part}.json", place / f"captions_{part}.json")
            for part in _PARTS
            if (place / f"instances_{part}.json").is_file()
        ]
        if found:
            return _from_annotations(found, ids)
        if (place / _PICKLE).is_file():
            return _chosen(_from_pickle(place / _PICKLE), ids)
        for name in (_OBJECTS, f"{_OBJECTS}.gz"):
            if (place / name).is_file():
                return _chosen(_from_list(place / name), ids)
    raise InputError(
        f"{folder} has no ground truth: expected instances_val2014.json with captions_val2014.json, "
        f"{_PICKLE} or {_OBJECTS}"
    )


def _chosen(truth: dict[int, Truth], ids: Collection[int] | None) -> dict[int, Truth]:
    return truth if ids is None else {number: truth[number] for number in ids if number in truth}


def _from_annotations(pairs: Sequence[tuple[Path, Path]], ids: Collection[int] | None) -> dict[int, Truth]:
    objects: dict[int, set[str]] = {}
    captions: dict[int, list[str]] = {}
    wanted: Callable[[int], bool] = (lambda number: True) if ids is None else set(ids).__contains__
    for instances, told in pairs:
        data = files.read_json(instances)
        names = {each["id"]: each["name"] for each in _list(data, "categories", instances, ("id", "name"))}
        for each in _list(data, "annotations", instances, ("image_id", "category_id")):
            if wanted(each["image_id"]):
                if each["category_id"] not in names:
                    raise InputError(f"{instances}: no category {each['category_id']!r}")
                objects.setdefault(each["image_id"], set()).add(names[each["category_id"]])
        data = files.read_json(told)
        for each in _list(data, "annotations", told, ("image_id", "caption")):
            if wanted(each["image_id"]):
                captions.setdefault(each["image_id"], []).append(each["caption"])
    return {
        number: Truth(frozenset(objects.get(number, ())), tuple(captions.get(number, ())))
        for number in {**objects, **captions}
    }


def _list(data: Any, key: str, path: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = files.field(data, key, list, str(path))
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(name not in entry for name in fields):
            raise InputError(f"{path}: {key}[{number}] must have {' and '.join(fields)}")
    return entries


def _from_list(path: Path) -> dict[int, Truth]:
    data = files.read_json(path)
    names = files.field(data, "names", list, str(path))
    images = files.field(data, "images", dict, str(path))
    try:
        return {int(number): Truth(frozenset(names[i] for i in each)) for number, each in images.items()}
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: 'images' must map ids to indices of 'names' ({error})") from error


class _Evaluator:
    """Takes the place of the class that chair.pkl was made with."""


class _Restricted(pickle.Unpickler):
    """Loads containers and that one class, and calls nothing else."""

    _ALLOWED: ClassVar = {
        ("__main__", "CHAIR"): _Evaluator,
        ("builtins", "set"): set,
        ("collections", "defaultdict"): dict,
        ("builtins", "list"): list,
        ("builtins", "dict"): dict,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._ALLOWED[module, name]


def _from_pickle(path: Path) -> dict[int, Truth]:
    try:
        with path.open("rb") as file:
            evaluator = _Restricted(file).load()
        return {int(number): Truth(frozenset(each)) for number, each in evaluator.imid_to_objects.items()}
    except (pickle.UnpicklingError, AttributeError, EOFError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} is not CHAIR's pickled evaluator: {error}") from error
