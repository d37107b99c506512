"""What the package ships: the folder of the demo model, held-out scenes, and POPE questions about them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from regaze.errors import RegazeError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Scenes and question files.
DATA_DIR: Path = Path(__file__).resolve().parent / "data"
#: The demo model, for ``AutoModelForImageTextToText.from_pretrained`` and ``AutoProcessor.from_pretrained``.
MODEL_DIR: Path = Path(__file__).resolve().parent / "model"
#: The shipped held-out scenes, 112 x 112 webp.
IMAGE_DIR: Path = DATA_DIR / "images"
#: Scenes that no benchmark asks about, and pairs of captions about them in the format of VTI's data.
FITTING_FILE: Path = DATA_DIR / "fitting" / "pairs.jsonl"
#: The same scenes with the objects of their captions, and where these are.
OBJECTS_FILE: Path = FITTING_FILE.parent / "objects.jsonl"
#: What models that load by a name of their own are called: this one, and the bed.
MODEL_NAMES = ("demo", "bed")
_SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class SceneObject:
    """One object in a scene.

    Attributes:
        category: COCO category name.
        box: ``(x0, y0, x1, y1)`` in pixels, x to the right and y down; right and lower edge exclusive.
        colour: its colour word, None where its emoji has a fixed colour.
    """

    category: str
    box: tuple[int, int, int, int]
    colour: str | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box as (x, y) in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def area(self) -> int:
        """Pixels of the box."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)


@dataclass(frozen=True)
class Scene:
    """A shipped held-out scene.

    Attributes:
        name: file name, as in the question files.
        path: the image file.
        scene_type: kind of place ("kitchen", "street", ...).
        objects: its objects; each category at most once.
    """

    name: str
    path: Path
    scene_type: str
    objects: tuple[SceneObject, ...]

    def image(self) -> Image:
        """Read the picture (RGB, 112 x 112)."""
        from PIL import Image

        with Image.open(self.path) as picture:
            return picture.convert("RGB")


@dataclass(frozen=True)
class SceneSet:
    """The scenes that ship with a model, and what goes with them.

    Attributes:
        name: of the model, "demo" or "bed".
        folder: holds ``scenes.json``, ``images``, ``behind`` and POPE's question files.
    """

    name: str
    folder: Path

    @property
    def images(self) -> Path:
        """The folder of the pictures."""
        return self.folder / "images"

    def scenes(self) -> list[Scene]:
        """The scenes, in a fixed order; needs no emoji font."""
        return list(_read_scenes(self.folder))

    def questions_file(self, split: str) -> Path:
        """The file of a POPE split, in the official JSON-lines format.

        Raises:
            RegazeError: there is no such split.
        """
        if split not in _SPLITS:
            raise RegazeError(
                f"the {self.name} has no POPE split {split!r}: choose one of {', '.join(_SPLITS)}"
            )
        return self.folder / f"pope_{split}.jsonl"

    def behind(self, scene: Scene, thing: SceneObject) -> Path:
        """The picture of what one of a scene's objects hides; there is one for its two largest objects.

        It shows the box of the object and `BEHIND_MARGIN` pixels around it, drawn without the object.
        """
        return self.folder / "behind" / behind_name(scene.name, scene.objects.index(thing))


#: Pixels around an object's box that compression may have tinted.
BEHIND_MARGIN = 2


def behind_name(scene: str, number: int) -> str:
    """The name of the picture of what the object with this number hides."""
    return f"{Path(scene).stem}_{number}.webp"


def with_margin(box: tuple[int, int, int, int], side: int = 112) -> tuple[int, int, int, int]:
    """A box with `BEHIND_MARGIN` around it, within the picture."""
    x0, y0, x1, y1 = box
    return (
        max(0, x0 - BEHIND_MARGIN),
        max(0, y0 - BEHIND_MARGIN),
        min(side, x1 + BEHIND_MARGIN),
        min(side, y1 + BEHIND_MARGIN),
    )


@lru_cache(maxsize=4)
def _read_scenes(folder: Path) -> tuple[Scene, ...]:
    entries = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    return tuple(
        Scene(
            entry["name"],
            folder / "images" / entry["name"],
            entry["scene_type"],
            tuple(SceneObject(o["category"], tuple(o["box"]), o["colour"]) for o in entry["objects"]),
        )
        for entry in entries
    )


#: What ships with the demo model.
DEMO = SceneSet("demo", DATA_DIR)


def scenes() -> list[Scene]:
    """The shipped held-out scenes, in a fixed order; needs no emoji font."""
    return DEMO.scenes()


def questions_file(split: str) -> Path:
    """The file of POPE questions about the shipped scenes, in the official JSON-lines format.

    Args:
        split: "random", "popular" or "adversarial".

    Raises:
        RegazeError: there is no such split.
    """
    return DEMO.questions_file(split)
