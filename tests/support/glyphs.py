"""Glyphs for drawn scenes where the emoji font is not installed."""

from __future__ import annotations

import colorsys

import pytest
from PIL import Image, ImageDraw

from regaze.demo.training import render, train


def shape(emoji: str) -> Image.Image:
    """A filled shape of a size, form and colour of its own in the place of an emoji, RGBA."""
    number = sum(map(ord, emoji))
    width, height = 100 + number % 37, 100 + number % 31
    colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number % 97 / 97, 0.9, 0.8))
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    if number % 2:
        draw.ellipse((0, 0, width - 1, height - 1), fill=(*colour, 255))
    else:
        draw.rounded_rectangle((0, 0, width - 1, height - 1), 20, fill=(*colour, 255))
    return image


def font_is_there() -> bool:
    """Whether the emoji font is installed."""
    try:
        render.emoji_font()
    except render.FontMissingError:
        return False
    return True


FONT = font_is_there()
needs_font = pytest.mark.skipif(not FONT, reason="Noto Color Emoji is not installed")


@pytest.fixture(scope="module")
def glyphs():
    """Emojis to draw with: the font's, or shapes."""
    with pytest.MonkeyPatch.context() as patch:
        if not FONT:
            patch.setattr(render, "_glyph", shape)
            patch.setattr(train, "emoji_font", lambda: None)  # asks for it before it begins
        yield
