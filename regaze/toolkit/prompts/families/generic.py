"""Families that regaze does not know: a guess where the configuration allows one, a clear error elsewhere."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from regaze.errors import GuessWarning, UnsupportedModelError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece


class Guessed(Family):
    """A vision-language model whose configuration names the id of its image tokens.

    Each run of them is taken for one image: a square grid where their number is a square, tokens without
    places otherwise.
    """

    name = "unknown vision-language"
    guessing = True
    _said = False  # one warning per wrapped model

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        found = image_id(self.config)
        return () if found is None else (found,)

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        if not self._said and not set(ids).isdisjoint(self.image_token_ids):
            self._said = True
            warnings.warn(
                f"regaze does not know the family {self.config.model_type!r} and guesses that every run of "
                f"token {self.image_token_id} is one image, in a square grid if their number is a square",
                GuessWarning,
                stacklevel=2,
            )
        return super().lay_out(ids, media)

    def split(self, count: int, media: Media) -> list[Piece]:
        side = math.isqrt(count)
        return [Piece.full(side, side) if side * side == count else Piece.placeless(count)]


class Unknown(Family):
    """A vision-language model whose image tokens regaze cannot find."""

    name = "unknown vision-language"

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        raise UnsupportedModelError(
            f"regaze does not know where {self.config.model_type!r} puts its image tokens; "
            "pass the roles yourself with gaze.using(..., tokens=TokenMap.from_roles(...)), "
            "or add a family (CONTRIBUTING.md)"
        )


def image_id(config: object) -> int | None:
    """The id of image tokens that a configuration names, or None."""
    names = ("image_token_id", "image_token_index")
    return next((found for name in names if isinstance(found := getattr(config, name, None), int)), None)
