"""The IDEFICS line: pictures cut into tiles with a small one of the whole behind them, or resampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Layout, Media, Piece, runs, whole_images
from regaze.toolkit.prompts.token_map import WHOLE, Shares


class Idefics2(Family):
    """Idefics2: a perceiver makes the same number of latents of every picture, which have no place in it.

    Where its processor splits images, the four quarters and the whole picture count as five images.
    """

    name = "idefics2"
    model_types = ("idefics2",)
    nested_images = True

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        latents = self.config.perceiver_config.resampler_n_latents
        number = whole_images(count, latents, "latents of the resampler")
        return [Piece.placeless(latents)] * number


class Idefics3(Family):
    """Idefics3 and SmolVLM: `<fake><row_1_col_1>` and its tokens for each tile, a line break behind each row
    of tiles, `<fake><global-img>` and the tokens of the whole picture, `<fake>`.

    Names of tiles are one token or several, depending on the tokenizer, so that the grid of tiles is told by
    what lies between them: `<fake>` alone, or a line break before it.
    """

    name = "idefics3"
    model_types = ("idefics3", "smolvlm")
    nested_images = True

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    @property
    def side(self) -> int:
        """Rows and columns of the tokens of one tile."""
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size // self.config.scale_factor

    def lay_out(self, ids: Sequence[int], media: Media) -> Layout:
        layout, size = Layout.of(len(ids)), self.side**2
        found = runs([token == self.config.image_token_id for token in ids])
        wrong = next((count for _, count in found if count != size), None)
        if wrong is not None:
            raise InputError(
                f"a tile of this model has {self.side} x {self.side} tokens, not {wrong}: the processor's "
                "image_seq_len and the model's configuration do not belong together"
            )
        for starts, breaks in _pictures(ids, found):
            rows = sum(breaks)
            columns = len(breaks) // rows if rows else 0
            if rows * columns != len(breaks):
                raise InputError(f"{len(breaks)} tiles in {rows} rows are no picture of this model")
            for i, start in enumerate(starts):
                box = tile_box(i, rows, columns) if i < len(breaks) else WHOLE
                piece = Piece.full(self.side, self.side, box=box, continues=i > 0)
                layout.add(piece, range(start, start + size))
        return layout


def tile_box(number: int, rows: int, columns: int) -> Shares:
    """The box of a tile, counted row by row, of a picture that `rows` x `columns` tiles cover."""
    row, column = divmod(number, columns)
    return column / columns, row / rows, (column + 1) / columns, (row + 1) / rows


def _pictures(ids: Sequence[int], found: Sequence[tuple[int, int]]) -> Iterator[tuple[list[int], list[bool]]]:
    """Per picture where its runs start, the whole picture's last, and which tiles end a row of tiles."""
    starts: list[int] = []
    breaks: list[bool] = []
    fake = next(iter(ids[sum(found[-1]) :]), -1) if found else -1  # what follows the whole picture
    for (start, count), (following, _) in pairwise([*found, (len(ids), 0)]):
        gap = list(ids[start + count : following])
        starts.append(start)
        if following == len(ids) or gap.count(fake) > 1:  # one closes this picture, one opens the next
            yield starts, breaks
            starts, breaks = [], []
        else:
            breaks.append(gap[0] != fake)
