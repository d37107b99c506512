"""Unknown families: a guess where the configuration names the image token, an error otherwise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from regaze.errors import GuessWarning, UnsupportedModelError
from regaze.toolkit.prompts.families.base import Family, Layout, MediaInputs, ViewTokens, VisionFamily


class GuessedFamily(VisionFamily):
    """A vision-language model of an unknown family whose configuration names the id of its image tokens.

    Each run of them is one image: a square grid where their number is a square, tokens without places
    otherwise.
    """

    name = "unknown vision-language"
    is_guess = True
    _warned = False  # one warning per wrapped model

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        if not self._warned and not set(ids).isdisjoint(self.image_token_ids):
            self._warned = True
            warnings.warn(
                f"regaze does not know the family {self.config.model_type!r} and guesses that every run of "
                f"token {self.image_token_id} is one image, in a square grid if their number is a square",
                GuessWarning,
                stacklevel=2,
            )
        return super().read_layout(ids, media)

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        side = math.isqrt(count)
        return [ViewTokens.row_major(side, side) if side * side == count else ViewTokens.unplaced(count)]


class UnknownFamily(Family):
    """A vision-language model of an unknown family whose image tokens regaze cannot find."""

    name = "unknown vision-language"

    def read_layout(self, ids: Sequence[int], media: MediaInputs) -> Layout:
        raise UnsupportedModelError(
            f"regaze does not know where {self.config.model_type!r} puts its image tokens; "
            "pass the roles yourself with gaze.using(..., tokens=TokenMap.from_roles(...)), "
            "or add a family (CONTRIBUTING.md)"
        )
