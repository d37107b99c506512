"""Chameleon and Emu3: pictures become words of the model's own vocabulary, by a quantised autoencoder."""

from __future__ import annotations

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Media, Piece, whole_images


class Chameleon(Family):
    """One square, row-major grid of words between two marks. The processor crops the middle of a picture."""

    name = "chameleon"
    model_types = ("chameleon",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return () if self.config.image_token_id is None else (self.config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        encoder = self.config.vq_config
        side = encoder.resolution // 2 ** (len(encoder.channel_multiplier) - 1)
        number = whole_images(count, side * side, f"{side} x {side} words")
        return [Piece.full(side, side)] * number

    def prompt(self, question: str, images: int, system: str | None) -> str:
        if system:
            raise InputError("a chameleon prompt has no place for system text")
        return "<image>" * images + question


class Emu3(Chameleon):
    """Rows of words with an end-of-line word each, in the picture's own shape."""

    name = "emu3"
    model_types = ("emu3",)
    media = ("image_sizes",)

    def split(self, count: int, media: Media) -> list[Piece]:
        scale = 2 ** (len(self.config.vq_config.channel_multiplier) - 1)
        rows, columns = (int(side) // scale for side in media.take("image_sizes"))
        if rows * (columns + 1) != count:
            raise InputError(
                f"a picture of {rows} x {columns} words has {rows * (columns + 1)} tokens with its line "
                f"ends, but the prompt has {count} for it"
            )
        cells = [
            row * columns + column if column < columns else -1
            for row in range(rows)
            for column in range(columns + 1)
        ]
        return [Piece((rows, columns), cells)]
