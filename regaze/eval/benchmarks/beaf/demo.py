"""BEAF's questions about scenes of the demo and the bed, and about copies that lack an object.

`redrawn`: the box of the object as the scene was drawn without it, which ships; all other pixels stay.

`without`: painted out. Backgrounds are a coarse grid of colours, enlarged smoothly, with grain
(`regaze.demo.training.render`). The grid is fitted to the pixels that no object covers, and its grain is
drawn from what these pixels are off by.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from regaze.demo import Scene, SceneObject
from regaze.demo.phrases import existence_question
from regaze.demo.shipped import BEHIND_MARGIN, SceneSet, with_margin
from regaze.demo.world import CATEGORIES, co_occurrence
from regaze.eval.benchmarks.beaf.scorers import BeafReference
from regaze.eval.benchmarks.common.image_store import store_image
from regaze.eval.files import cache_folder

#: Copies per scene, and questions about objects that are not in it.
COPIES, ABSENT = 2, 2
_GRID = 6  # colours of a background, each way
_SHRINKAGE = 0.6  # standard deviation of the grain over that of the colours: hidden ones are near the mean

Question = tuple[Path, BeafReference]


def questions(shipped: SceneSet, redraw: bool) -> Iterator[list[Question]]:
    """Per scene the questions about the original, then those about each copy, which is made when it comes.

    The same are asked of all images of a scene: about its objects, and about the absent ones that most often
    occur with them. Copies lack the largest objects, one each.
    """
    folder = cache_folder() / shipped.name / "beaf"
    for scene in shipped.scenes():
        taken = sorted(scene.objects, key=lambda thing: thing.area, reverse=True)[:COPIES]
        asked = [*(thing.category for thing in scene.objects), *_expected(scene)]
        found = list(_ask(scene, scene.path, None, taken, asked))
        for thing in taken:
            image = redrawn(shipped, scene, thing) if redraw else without(scene, thing)
            found += _ask(scene, store_image(image, folder), thing, taken, asked)
        yield found


def redrawn(shipped: SceneSet, scene: Scene, thing: SceneObject) -> Image.Image:
    """The scene as it was drawn without `thing`, in its box; the boxes of others are left as they are."""
    x0, y0, x1, y1 = box = with_margin(thing.box)
    copy = scene.image()
    fresh = np.zeros((copy.height, copy.width), bool)
    fresh[y0:y1, x0:x1] = True
    for other in scene.objects:
        if other != thing:
            fresh[_slices(other, 0)] = False
    with Image.open(shipped.behind(scene, thing)) as behind:
        copy.paste(behind.convert("RGB"), box[:2], Image.fromarray(fresh).crop(box))
    return copy


def without(scene: Scene, thing: SceneObject) -> Image.Image:
    """The scene with what lies behind `thing` in its place; the same pixels at each call."""
    pixels = np.asarray(scene.image(), np.float64)
    free = np.ones(pixels.shape[:2], bool)
    for other in scene.objects:
        free[_slices(other, BEHIND_MARGIN)] = False
    hole = np.zeros_like(free)
    hole[_slices(thing, BEHIND_MARGIN)] = True
    for other in scene.objects:
        if other != thing:
            hole[_slices(other, 0)] = False
    smooth, mean = _basis(*free.shape), pixels[free].mean(0)
    rows = np.vstack([smooth[free], _SHRINKAGE * np.eye(_GRID**2)])
    targets = np.vstack([pixels[free] - mean, np.zeros((_GRID**2, 3))])
    colours = np.linalg.lstsq(rows, targets, rcond=None)[0] + mean  # each row of `smooth` sums to 1
    grain = pixels[free] - smooth[free] @ colours
    drawn = np.random.default_rng(list(thing.box)).integers(len(grain), size=hole.sum())
    pixels[hole] = smooth[hole] @ colours + grain[drawn]
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _ask(
    scene: Scene, image: Path, lacks: SceneObject | None, taken: list[SceneObject], asked: list[str]
) -> Iterator[Question]:
    there = {thing.category for thing in scene.objects if thing != lacks}
    removed = {thing.category for thing in taken}
    for category in asked:
        label = "yes" if category in there else "no"
        reference = BeafReference(
            scene.path.stem, existence_question(category), label, lacks is None, category in removed
        )
        yield image, reference


def _expected(scene: Scene) -> list[str]:
    """The absent categories that most often occur with the scene's."""
    values = co_occurrence().expectation([thing.category for thing in scene.objects])
    return [CATEGORIES[i] for i in np.argsort(-values, kind="stable")[:ABSENT]]


def _slices(thing: SceneObject, margin: int) -> tuple[slice, slice]:
    x0, y0, x1, y1 = thing.box
    return slice(max(0, y0 - margin), y1 + margin), slice(max(0, x0 - margin), x1 + margin)


@cache
def _basis(height: int, width: int) -> np.ndarray:
    """[height, width, 36]: each colour of a background's grid, enlarged by itself."""
    cells = np.eye(_GRID**2, dtype=np.float32).reshape(-1, _GRID, _GRID)
    images = [Image.fromarray(cell).resize((width, height), Image.Resampling.BICUBIC) for cell in cells]
    return np.stack([np.asarray(image, np.float64) for image in images], -1)
