"""ROPE: which class each of five marked objects has (Chen et al., NeurIPS 2024, arXiv 2407.06192).

A picture has five red boxes, and the prompt a list of 50 classes of COCO or ADE. Pictures are sorted by their
objects: all of one class (homogenous), all different (heterogenous), mixed, and four of one class before or
after another one (AAAAB, BAAAA). Four modes:

`multi`
    All five in one answer: "obj1: dog, obj2: cat, ...". The default of the authors' script.
`single`
    One question per object.
`teacher-forcing`
    One question per object, which begins the list with the true classes of the objects before.
`student-forcing`
    The same with the model's own answers. Each depends on the one before, so nothing is generated here:
    answers that exist are scored.

Scorers: `official`, which counts answers that it cannot split more than once, and `regaze`
(`regaze.eval.benchmarks.rope.scorers`).
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common.base import About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import benchmark_folder, github_file
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.rope.scorers import (
    MODES,
    MULTI,
    OBJECTS,
    SINGLE,
    STUDENT,
    TEACHER,
    OfficialScorer,
    RegazeScorer,
    RopeReference,
)
from regaze.reading import StrPath, read_text

#: Kind of picture -> file of its questions.
FILES = {
    "AAAAB": "AAAAB_data.json",
    "BAAAA": "BAAAA_data.json",
    "heterogenous": "merged_heterogenous_data.json",
    "homogenous": "merged_homogenous_data.json",
    "mixed": "merged_mixed_data.json",
}
#: Part of the data -> the variable of `CLASSES` with its lists of classes.
PARTS = {"validation": "VALIDATION_CLASSES", "train": "TRAIN_CLASSES"}
SOURCES = ("COCO", "ADE")
HUB = "sled-umich/ROPE"
CLASSES = "constant.py"

LIST_PROMPT = (
    "Five objects in this image are marked by red boxes. Choose the class of each from this list: {classes}. "
    "Answer with obj1: class, obj2: class, obj3: class, obj4: class, obj5: class, where each class is "
    "replaced by the name of one from the list, and with nothing else."
)
SINGLE_PROMPT = (
    "Obj.{number} in this image is marked by a red box. Choose its class from this list: {classes}. Answer "
    "with the name of the class and nothing else."
)


@dataclass(frozen=True)
class Rope(BaseBenchmark):
    """The pictures of one part of the data in one mode, a split per kind.

    There is no `from_hub`: where the paths in the files start from on the hub is not documented.

    Attributes:
        mode: One of `MODES`.
        prompt_name: Where the wording of the questions is from.
        classes_from: Where the lists of classes are from.
    """

    items: tuple[Item, ...]
    mode: str = MULTI
    prompt_name: str = "regaze 1"
    classes_from: str = ""
    suffix: str = ""
    name: str = "rope"
    about: ClassVar[About] = About(
        title="ROPE",
        paper="Chen et al., NeurIPS 2024, arXiv 2407.06192",
        licence="none stated",
        images=f"COCO and ADE20K photographs with boxes drawn on them, in {HUB} on the hub",
        home="https://github.com/sled-group/moh",
        files=(github_file("sled-group/moh", "172e118f2f8ca9eda89abb757220cf868312833b", CLASSES, None),),
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        mode: str = MULTI,
        part: str = "validation",
        splits: Sequence[str] = tuple(FILES),
        prompt: StrPath | None = None,
        limit: int | None = None,
    ) -> Rope:
        """A part of the data as a local copy: `folder`/<part>/AAAAB_data.json and four more.

        The lists of classes are those of the authors' constant.py (in `folder`, or downloaded); without it
        those of all objects in the part.

        Args:
            images: Folder that the paths in the files start from; `folder` by default.
            mode: multi, single, teacher-forcing or student-forcing.
            part: validation or train.
            splits: Kinds of pictures.
            prompt: A file with the wording of the questions: {classes}, and {number} for single.
            limit: Questions of each kind; those about one picture stay together.

        Raises:
            InputError: An unknown mode, part or kind; a file is missing or malformed.
        """
        if mode not in MODES or part not in PARTS or not set(splits) <= set(FILES) or not splits:
            raise InputError(
                f"ROPE has the modes {', '.join(MODES)}, the parts {', '.join(PARTS)}, the splits "
                f"{', '.join(FILES)}; got {mode!r}, {part!r}, {list(splits)!r}"
            )
        folder, image_folder = files.folders_of(folder, images, ".")
        pictures = [
            picture for kind in splits for picture in _read_pictures(folder / part / FILES[kind], kind)
        ]
        classes, classes_from = _read_classes(folder, part, pictures)
        wording, name = _wording(prompt, mode)
        items, groups = [], {}
        for picture in pictures:
            for item in _items(picture, mode, wording, classes[picture.data_source], image_folder):
                items.append(item)
                groups[item.key] = picture.key
        return cls(limit_items(items, limit, groups), mode, name, classes_from)

    def prompt(self, item: Item) -> str:
        """The question followed by the suffix. Raises InputError in student forcing."""
        if self.mode == STUDENT:
            raise InputError(
                "ROPE's student forcing asks for each object after the model's own answer to the one before, "
                "which a run cannot do: score answers that exist (regaze score), or take teacher-forcing"
            )
        return super().prompt(item)

    def scorers(self) -> Sequence[Scorer]:
        return (OfficialScorer("official", "sled-group/moh 9483f2e evaluation.py", self.mode), RegazeScorer())

    def cluster(self, item: Item) -> str:
        """The picture."""
        return str(item.reference.image)

    def describe(self) -> dict[str, Any]:
        """As `BaseBenchmark.describe`, with the mode and the origin of wording and lists of classes."""
        return {
            **super().describe(),
            "mode": self.mode,
            "prompt": self.prompt_name,
            "classes": self.classes_from,
        }


@dataclass(frozen=True)
class _Picture:
    """A picture of the data: its kind, its path, the source of its classes, and its objects' classes."""

    kind: str
    path: str
    data_source: str
    names: tuple[str, ...]
    source: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.path}"


def _read_pictures(path: Path, kind: str) -> list[_Picture]:
    try:
        path = files.find_file(path.parent, path.name)
    except InputError as error:
        raise InputError(
            f"{error}; the questions and pictures are {HUB} on the hub: copy them here"
        ) from error
    pictures = []
    for line, record in files.read_records(path):
        source = f"{path}:{line}"
        place, data_source = (
            files.require_field(record, key, str, source) for key in ("folder", "data_source")
        )
        objects = files.require_field(record, "objects", list, source)
        if data_source not in SOURCES or len(objects) != OBJECTS:
            raise InputError(
                f"{source}: expected {OBJECTS} objects of {' or '.join(SOURCES)}, got {len(objects)} of "
                f"{data_source!r}"
            )
        names = tuple(files.require_field(each, "name", str, source) for each in objects)
        pictures.append(_Picture(kind, place.replace("jpg", "png").lstrip("/"), data_source, names, source))
    return pictures


def _read_classes(
    folder: Path, part: str, pictures: Sequence[_Picture]
) -> tuple[Mapping[str, tuple[str, ...]], str]:
    """({source of the data: its list of classes}, where they are from)."""
    path = next(
        (p for p in (folder / CLASSES, benchmark_folder("rope") / CLASSES) if os.path.isfile(p)), None
    )
    if path is None:
        names = {
            source: {n for p in pictures if p.data_source == source for n in p.names} for source in SOURCES
        }
        return {source: tuple(sorted(each)) for source, each in names.items()}, "the objects in the data"
    lists = _read_variable(path, PARTS[part])
    classes = {source: tuple(files.require_texts(lists, source, str(path))) for source in SOURCES}
    for picture in pictures:
        known = {name.lower() for name in classes[picture.data_source]}
        if absent := [name for name in picture.names if name.lower() not in known]:
            raise InputError(
                f"{picture.source}: {absent[0]!r} is no class of {picture.data_source} in {path}"
            )
    return classes, CLASSES


def _read_variable(path: Path, name: str) -> Any:
    """The literal that a Python file assigns to a variable; nothing of the file is run."""
    try:
        tree = ast.parse(read_text(path, max_bytes=2**20))
        for node in tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
                return ast.literal_eval(node.value)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: {name} is no list of classes: {error}") from error
    raise InputError(f"{path} has no {name}")


def _wording(prompt: StrPath | None, mode: str) -> tuple[str, str]:
    """(text with placeholders, its name)."""
    if prompt is None:
        return (SINGLE_PROMPT if mode == SINGLE else LIST_PROMPT), "regaze 1"
    path = Path(prompt)
    text = read_text(path).rstrip("\n")
    needed = ("{classes}", "{number}") if mode == SINGLE else ("{classes}",)
    if absent := [each for each in needed if each not in text]:
        raise InputError(f"{path} lacks {absent[0]}; a wording has {' and '.join(needed)}")
    return text, f"{path.name} {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _items(
    picture: _Picture, mode: str, wording: str, classes: tuple[str, ...], image_folder: Path
) -> list[Item]:
    """One item for all objects, or one for each."""
    given, original = image_folder / picture.path, image_folder / picture.path.replace("png", "jpg")
    image = original if os.path.isfile(original) and not os.path.isfile(given) else given
    text = wording.replace("{classes}", ", ".join(classes))
    items = []
    for number in (0,) if mode == MULTI else range(1, OBJECTS + 1):
        question = text.replace("{number}", str(number))
        if mode == TEACHER:
            before = [f"obj{at}: {name.lower()}" for at, name in enumerate(picture.names, start=1)]
            question += " " + ", ".join([*before[: number - 1], f"obj{number}:"])
        own_id = image.name + (f"-{number}" if number else "")
        label = picture.names[number - 1] if number else ""
        reference = RopeReference(picture.key, picture.names, classes, number)
        key = picture.key + (f"/{number}" if number else "")
        items.append(Item(key, picture.kind, image, question, label, picture.source, reference, id=own_id))
    return items
