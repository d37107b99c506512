"""PhD: prompted visual hallucination, five tasks in four modes (Liu et al., 2024, arXiv 2403.11116).

`base`
    A COCO 2014 image and a question of which the answer is yes, or no.
`iac`, `icc`
    The same after an inaccurate or an incorrect context, and the sentence that the image is what counts.
    Later versions of the paper and the hub call `iac` "sec" or "specious".
`ccs`
    Questions about 750 made images that contradict common sense.

No scorer was released; the readings in use are in `regaze.eval.benchmarks.phd.scorers`. Which half of COCO an
image is in does not stand in the file: it is looked for in train2014, then in val2014.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import IMAGE_TOKEN, About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import hub_file
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.common.yes_no import LABELS
from regaze.eval.benchmarks.phd.scorers import MODES, SCORERS, TASKS, PhdReference
from regaze.reading import StrPath

HUB = "AIMClab-RUC/PhD"
FILE, CCS_FILE = "data.json", "data_ccs.json"
#: Further names of modes, and of tasks.
MODE_ALIASES = {"sec": "iac", "specious": "iac"}
TASK_ALIASES = {"position": "positional", "count": "counting"}
#: Between a context and a question.
INSTRUCTION = (
    " In case there is an inconsistency between the context and the image content, "
    "you should follow the image. "
)


@dataclass(frozen=True)
class Phd(BaseBenchmark):
    """The questions of some or all modes, which are its splits; the bootstrap draws images."""

    items: tuple[Item, ...]
    suffix: str = ""
    name: str = "phd"
    about: ClassVar[About] = About(
        title="PhD",
        paper="Liu et al., 2024, arXiv 2403.11116",
        licence="MIT by its data card",
        images="COCO 2014 (Flickr photographs, a licence each); 750 made images, in the "
        "data set's repository on the hub",
        home="https://github.com/jiazhen-code/PhD",
        hub=HUB,
        files=(hub_file(HUB, FILE),),
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        modes: Sequence[str] = MODES,
        suffix: str = "",
        limit: int | None = None,
    ) -> Phd:
        """data.json in `folder`; train2014, val2014 and CCS_images in `images` (`folder`/images).

        data_ccs.json of November 2024, which has the made images alone and no tasks, is read, too.

        Args:
            modes: base, iac (or sec), icc, ccs.
            limit: Number of questions per mode.

        Raises:
            InputError: The file is missing or malformed, or has no questions of a mode.
        """
        chosen = _read_modes(modes)
        folder, image_folder = files.folders_of(folder, images, "images")
        path = files.find_file(folder, FILE, CCS_FILE, "data_ccs_2024-11.json")
        records = [(f"{path}:{line}", record) for line, record in files.read_records(path)]
        find = cache(lambda number: find_coco_image(image_folder, number))
        items = [
            item
            for mode in chosen
            for number, (source, record) in enumerate(records)
            if (mode == "ccs") == _is_made(record, source)
            for item in _items(mode, number, record, source, image_folder, find)
        ]
        if not items:
            raise InputError(f"{path} has no questions of {', '.join(chosen)}")
        return cls(limit_items(items, limit), suffix)

    @classmethod
    def from_hub(
        cls,
        images: StrPath | None = None,
        *,
        modes: Sequence[str] = MODES,
        suffix: str = "",
        revision: str | None = None,
        limit: int | None = None,
    ) -> Phd:
        """The files of the hub's data set, as `load`.

        Args:
            images: Folder with train2014, val2014 and CCS_images; by default those of the data set are
                fetched, as far as the modes need them.
            revision: Of the data set.

        Raises:
            InputError: As `load` and `hub.fetch_files`.
        """
        chosen, patterns = _read_modes(modes), [FILE]
        if images is None:
            made, photographs = "ccs" in chosen, set(chosen) != {"ccs"}
            patterns += ["images/CCS_images/*"] * made + ["images/*2014/*"] * photographs
        folder = hub.fetch_files(HUB, patterns, revision=revision)
        return cls.load(folder, images, modes=chosen, suffix=suffix, limit=limit)

    def scorers(self) -> Sequence[Scorer]:
        return SCORERS


def find_coco_image(folder: Path, number: str) -> Path:
    """The file of a COCO 2014 image by its number: that of train2014 if it is there, else that of val2014."""
    names = [f"{half}/COCO_{half}_{number.zfill(12)}.jpg" for half in ("train2014", "val2014")]
    return next((folder / name for name in names if os.path.isfile(folder / name)), folder / names[1])


def _read_modes(modes: Sequence[str]) -> list[str]:
    """Modes by the names that they have here, each once."""
    chosen = [MODE_ALIASES.get(mode, mode) for mode in modes]
    if not chosen or not set(chosen) <= set(MODES):
        raise InputError(f"PhD has the modes {', '.join(MODES)}, got {', '.join(modes) or 'none'}")
    return list(dict.fromkeys(chosen))


def _is_made(record: Any, source: str) -> bool:
    if not isinstance(record, dict):
        raise InputError(f"{source}: expected an object, got {type(record).__name__}")
    return "ccs_description" in record


def _items(
    mode: str, number: int, record: Mapping[str, Any], source: str, folder: Path, find: Any
) -> Iterator[Item]:
    """The question whose answer is yes, and the one whose answer is no."""
    if mode == "ccs":
        image = folder / "CCS_images" / _made_name(record, source)
    else:
        digits = str(files.require_field(record, "image_id", (str, int), source))
        if not re.fullmatch(r"[0-9]{1,12}", digits):
            raise InputError(f"{source}: 'image_id' must be the number of a COCO image, got {digits!r}")
        image = find(digits)
    before = _context(mode, record, source) + INSTRUCTION if mode in ("iac", "icc") else ""
    task = _task(mode, record, source)
    for label in LABELS:
        question = before + files.require_field(record, f"{label}_question", str, source)
        if IMAGE_TOKEN in question:
            raise InputError(f"{source}: {IMAGE_TOKEN} cannot be part of a question, got {question!r}")
        reference = PhdReference(mode, task, label)
        yield Item(f"{mode}/{number}/{label}", mode, image, question, label, source, reference)


def _made_name(record: Mapping[str, Any], source: str) -> str:
    """File of a made image: by its id, or in the older file by its path."""
    field = "image_path" if "image_path" in record else "image_id"
    name = Path(str(files.require_field(record, field, (str, int), source))).name
    return name if field == "image_path" else f"{name}.png"


def _task(mode: str, record: Mapping[str, Any], source: str) -> str:
    if mode == "ccs" and "task" not in record:
        return TASKS[-1]
    given = files.require_field(record, "task", str, source).lower().strip()
    task = TASK_ALIASES.get(given, given)
    if task not in TASKS[:-1]:
        raise InputError(f"{source}: unknown task {given!r}; there are {', '.join(TASKS[:-1])}")
    return task


def _context(mode: str, record: Mapping[str, Any], source: str) -> str:
    contexts = files.require_field(record, "context", dict, source)
    names = [mode, *(alias for alias, name in MODE_ALIASES.items() if name == mode)]
    present = next((name for name in names if name in contexts), mode)
    text: str = files.require_field(contexts, present, str, f"{source}: context")
    return text
