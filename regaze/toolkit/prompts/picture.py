"""`Picture`: the image that a user gave, before the processor, and where its parts lie on a copy of it."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from regaze.toolkit.prompts.images import SEEN

#: Left, upper, right and lower edge of a part of an image, as fractions of its width and height.
Shares = tuple[float, float, float, float]
WHOLE: Shares = (0.0, 0.0, 1.0, 1.0)

#: How much the aspect ratio of a resized copy may differ, beside the rounding of its sides.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class Picture:
    """An image of a prompt, as the user gave it.

    Attributes:
        size: its (width, height).
        seen: (width, height) of what the model receives of it, without padding; None: not measured.
        window: the part of the image that the model receives; the rest is cropped away.
    """

    size: tuple[int, int]
    seen: tuple[int, int] | None = None
    window: Shares = WHOLE

    def shown_by(self, copy: Image.Image) -> Shares | None:
        """The part of this picture that `copy` shows: of any size, whole or as the model receives it.

        Returns:
            None for an image of another shape.
        """
        is_whole, is_seen = same_shape(copy.size, self.size), self._is_seen(copy)
        if is_whole and is_seen and not copy.info.get(SEEN):  # of the two, that of exactly this size
            is_whole = copy.size == self.size or copy.size != self.seen
            is_seen = not is_whole
        if is_seen:
            return self.window
        return WHOLE if is_whole else None

    def _is_seen(self, copy: Image.Image) -> bool:
        return bool(copy.info.get(SEEN)) if self.seen is None else same_shape(copy.size, self.seen)


def within(box: Shares, part: Shares) -> Shares:
    """A box in fractions of an image as one in fractions of a part of it."""
    left, upper, right, lower = part
    across, down = right - left, lower - upper
    x0, y0, x1, y1 = box
    exact = (x0 - left) / across, (y0 - upper) / down, (x1 - left) / across, (y1 - upper) / down
    return rounded(exact)


def rounded(shares: Shares) -> Shares:
    """Shares of which 1 is 1.0, not 0.9999999999999999, and 0 is not negative."""
    left, upper, right, lower = (round(edge, 9) + 0.0 for edge in shares)
    return left, upper, right, lower


def same_shape(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two (width, height) have one aspect ratio, up to rounding by a pixel."""
    slack = 1 + _TOLERANCE + 1 / min(*a, *b)
    ratio = a[0] * b[1] / (a[1] * b[0])
    return 1 / slack <= ratio <= slack
