"""What regaze must know of a model family, and how unknown ones say so."""

from __future__ import annotations

from typing import Any

from regaze.errors import InputError, UnsupportedModelError


class Family:
    """A text-only model: no image tokens. Vision-language families override what differs.

    Attributes:
        name: shown in messages and tables.
        model_types: `config.model_type` values that belong to the family.
    """

    name: str = "text"
    model_types: tuple[str, ...] = ()

    def __init__(self, config: Any):
        self.config = config

    @property
    def image_token_id(self) -> int | None:
        """Id of the placeholder that stands for one image token in `input_ids`; None without images."""
        return None

    def split_images(self, count: int) -> list[tuple[tuple[int, int], list[int]]]:
        """Divide a run of `count` neighbouring image tokens into images.

        Returns:
            Per image its grid (rows, columns) and the row-major cell of each of its tokens (-1: no place in
            the grid).

        Raises:
            InputError: the run is not a whole number of images.
        """
        raise InputError(f"a {self.name} model has no image tokens")


class UnknownVisionFamily(Family):
    """A vision-language model whose image tokens regaze cannot place yet."""

    name = "unknown vision-language"

    @property
    def image_token_id(self) -> int | None:
        raise UnsupportedModelError(
            f"regaze does not know where {self.config.model_type!r} puts its image tokens; "
            "pass the roles yourself with gaze.using(..., tokens=TokenMap.from_roles(...)), "
            "or add a family (CONTRIBUTING.md)"
        )
