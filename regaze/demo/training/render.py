"""Draw scenes with the Noto Color Emoji font, with boxes and per-patch labels known by construction.

A scene is a function of ``(seed, stream, index)`` alone: the same three numbers give the same pixels.
Streams separate training, held-out and shipped scenes. Drawing needs the font; reading the shipped scenes
does not.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regaze.demo.shipped import SceneObject
from regaze.demo.world import CATEGORIES, COLOURED, COLOURS, EMOJI, SCENE_TYPES, sample_categories
from regaze.errors import RegazeError

SIDE = 112  #: pixels of a scene, both ways
PATCH = 14  #: pixels of a vision patch: the model sees an 8 x 8 grid
GRID = SIDE // PATCH
STREAMS = {"train": 0, "heldout": 1, "shipped": 2, "fitting": 3}

_FONT_FILE = "NotoColorEmoji.ttf"
_FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/Library/Fonts",
)
_FONT_SIZE = 109  # the only size of the font's bitmaps
Box = tuple[int, int, int, int]
_SMALLEST = 20  # pixels along the longer edge of an object
_MIN_COVER = 0.22  # a patch belongs to an object that covers at least this much of it


class FontMissingError(RegazeError):
    """Noto Color Emoji is not installed, so scenes cannot be drawn."""


@dataclass(frozen=True)
class Rendered:
    """A drawn scene.

    Attributes:
        pixels: [112, 112, 3] uint8.
        patch_category: [8, 8] int64, -1 for background.
        patch_colour: [8, 8] int64, -1 for background and objects of a fixed colour.
    """

    scene_type: str
    objects: tuple[SceneObject, ...]
    pixels: np.ndarray
    patch_category: np.ndarray
    patch_colour: np.ndarray

    def image(self) -> Image.Image:
        """The scene as an RGB image."""
        return Image.fromarray(self.pixels)


@lru_cache(maxsize=1)
def emoji_font() -> ImageFont.FreeTypeFont:
    """The emoji font. Raises FontMissingError, which names the package to install."""
    for folder in (Path(name).expanduser() for name in _FONT_FOLDERS):
        for file in sorted(folder.rglob(_FONT_FILE)):
            return ImageFont.truetype(str(file), _FONT_SIZE)
    raise FontMissingError(
        f"drawing demo scenes needs the font {_FONT_FILE}, which is in none of {', '.join(_FONT_FOLDERS)}: "
        "install the Debian package fonts-noto-color-emoji (regaze.demo.scenes() are ready and need no font)"
    )


@cache
def _glyph(emoji: str) -> Image.Image:
    """One emoji at full size, RGBA, cut to its visible pixels."""
    canvas = Image.new("RGBA", (180, 180))
    ImageDraw.Draw(canvas).text((20, 20), emoji, font=emoji_font(), embedded_color=True)
    box = canvas.getchannel("A").point(lambda a: 255 if a > 40 else 0).getbbox()
    if box is None:
        raise FontMissingError(
            f"the emoji font found has no glyph for {emoji!r}: install fonts-noto-color-emoji"
        )
    return canvas.crop(box)


def _turn_hue(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Give every saturated pixel of an RGBA glyph the hue ``degrees``; saturation and value stay."""
    rgb = pixels[..., :3].astype(np.float32) / 255
    high, low = rgb.max(-1), rgb.min(-1)
    spread = high - low
    saturated = spread > 0.25 * np.maximum(high, 1e-6)
    pure = np.array(colorsys.hsv_to_rgb(degrees / 360, 1.0, 1.0), dtype=np.float32)
    turned = low[..., None] + spread[..., None] * pure
    out = pixels.copy()
    out[..., :3][saturated] = np.rint(255 * turned[saturated]).astype(np.uint8)
    return out


@lru_cache(maxsize=20_000)
def _sprite(emoji: str, colour: str | None, longest: int) -> np.ndarray:
    """An emoji in a colour, its longest edge ``longest`` pixels: float32 [h, w, 4] with RGB in 0..255,
    alpha in 0..1."""
    glyph = _glyph(emoji)
    if colour is not None:
        glyph = Image.fromarray(_turn_hue(np.asarray(glyph), COLOURS[colour]))
    scale = longest / max(glyph.size)
    size = (max(4, round(glyph.width * scale)), max(4, round(glyph.height * scale)))
    sprite = np.asarray(glyph.resize(size, Image.Resampling.LANCZOS)).astype(np.float32)
    sprite[..., 3] /= 255
    return sprite


def _background(scene_type: str, rng: np.random.Generator) -> np.ndarray:
    """A noisy background in the scene type's colour, float32 [112, 112, 3]."""
    tint = np.array(SCENE_TYPES[scene_type].ground) + rng.normal(0, 8, 3) - 128
    blotches = rng.normal(0, 9, (6, 6, 3)) + rng.normal(0, 12, (6, 6, 1)) + 128
    small = Image.fromarray(np.clip(blotches, 0, 255).astype(np.uint8))
    wide = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32) * 8
    return wide + grain + tint.astype(np.float32)


def _place(rng: np.random.Generator, size: tuple[int, int], taken: list[Box]) -> Box | None:
    """A box of ``size`` (h, w) that overlaps no taken box, or None after 40 tries."""
    h, w = size
    for _ in range(40):
        x, y = int(rng.integers(0, SIDE - w + 1)), int(rng.integers(0, SIDE - h + 1))
        if all(x >= x1 or x + w <= x0 or y >= y1 or y + h <= y0 for x0, y0, x1, y1 in taken):
            return x, y, x + w, y + h
    return None


def draw(
    scene_type: str, categories: list[str], rng: np.random.Generator, *, without: str | None = None
) -> Rendered:
    """Draw ``categories`` at random places on the background of ``scene_type``.

    Objects never overlap: one without room is drawn smaller, and left out if there is still none.

    Args:
        without: a category that is not drawn; all else is as it would be with it, to the pixel.
    """
    canvas = _background(scene_type, rng)
    # Opacity is no part of it: a transparent object owns its patches, too.
    cover = np.zeros((len(categories), SIDE, SIDE), dtype=np.float32)
    objects: list[SceneObject] = []
    taken: list[Box] = []
    for category in categories:
        emoji = EMOJI[category][rng.integers(len(EMOJI[category]))]
        colour = list(COLOURS)[rng.integers(len(COLOURS))] if category in COLOURED else None
        longest, opacity = int(rng.integers(_SMALLEST, 44)), np.float32(rng.uniform(0.75, 1.0))
        box = None
        while box is None and longest >= _SMALLEST:
            sprite = _sprite(emoji, colour, longest)
            box = _place(rng, sprite.shape[:2], taken)
            longest -= 5
        if box is None:
            continue
        taken.append(box)
        if category == without:
            continue
        x0, y0, x1, y1 = box
        alpha = sprite[..., 3:] * opacity
        canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - alpha) + sprite[..., :3] * alpha
        cover[len(objects), y0:y1, x0:x1] = sprite[..., 3]
        objects.append(SceneObject(category, box, colour))
    canvas += 5 * rng.standard_normal(canvas.shape, dtype=np.float32)  # sensor noise, over the objects too
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Rendered(scene_type, tuple(objects), pixels, *_patch_labels(objects, cover[: len(objects)]))


def _patch_labels(objects: list[SceneObject], cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Category and colour index of the object that covers each patch most; -1 where none covers enough."""
    if not objects:
        return np.full((GRID, GRID), -1), np.full((GRID, GRID), -1)
    share = cover.reshape(-1, GRID, PATCH, GRID, PATCH).mean((2, 4))
    owner = share.argmax(0)
    names = list(COLOURS)
    categories = np.array([CATEGORIES.index(thing.category) for thing in objects])
    colours = np.array([-1 if thing.colour is None else names.index(thing.colour) for thing in objects])
    covered = share.max(0) >= _MIN_COVER
    return np.where(covered, categories[owner], -1), np.where(covered, colours[owner], -1)


def scene_rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """The generator of scene ``index`` of ``stream`` ("train", "heldout" or "shipped")."""
    return np.random.default_rng([seed, STREAMS[stream], index])


def render_scene(seed: int, stream: str, index: int, *, without: str | None = None) -> Rendered:
    """Scene ``index`` of ``stream``; deterministic.

    Args:
        without: a category to leave out (`draw`).

    Raises:
        FontMissingError: Noto Color Emoji is not installed.
    """
    rng = scene_rng(seed, stream, index)
    return draw(*sample_categories(rng), rng, without=without)
