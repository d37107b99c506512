"""`TraceView`: one sample of a trace without its padding: tokens, rows, weights and pictures of a page."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from regaze.errors import BadParameterError, InputError
from regaze.toolkit.prompts.content_words import subject_words, tokens_of
from regaze.toolkit.prompts.images import ImageLike, open_image
from regaze.toolkit.prompts.picture import WHOLE, Shares
from regaze.toolkit.prompts.token_map import Role, View, boxes_on
from regaze.toolkit.record.trace import Trace
from regaze.toolkit.viewer.codec import Array

#: A token whose role is not known.
UNKNOWN = len(Role)
#: Longest side of a picture on a page, in pixels.
_SIDE = 1024
#: Bytes up to which a picture is a PNG; larger ones become JPEG.
_PNG_BYTES = 200_000


class TraceView:
    """One sample of a trace, whose tokens are numbered without the padding.

    Attributes:
        prompt: number of tokens of the prompt; those of the answer follow.
        pieces: text of each token, "" for those of images. roles: `Role` of each, or UNKNOWN.
        rows: for each recorded row its token, the row's query; it predicts the token after it.
    """

    trace: Trace
    sample: int

    def __init__(self, trace: Trace, sample: int = 0):
        if not 0 <= sample < len(trace.row_active):
            raise BadParameterError(f"sample {sample} is not in the record; it has {len(trace.row_active)}")
        self.trace, self.sample = trace, sample
        length = _prompt_length(trace)
        real = np.arange(length)
        if trace.tokens is not None:
            real = real[(trace.tokens.roles[sample] != Role.PAD).numpy()]
        self.prompt: int = len(real)
        self._token_of = np.full(length, -1)
        self._token_of[real] = np.arange(self.prompt)
        self._active = trace.row_active[sample].numpy()
        self.rows: list[int] = [self._token(int(place)) for place in trace.row_position[self._active]]
        known = _answer_length(trace, sample, length)
        # The last row predicts one more token, even where the trace does not hold its id.
        total = max(self.prompt + known, 2 + max(self.rows))
        self._columns = np.concatenate([real, length + np.arange(total - self.prompt)])
        self.roles: list[int] = self._roles(total)
        self.pieces: list[str] = self._pieces(total)

    def _token(self, position: int) -> int:
        """The token at a position of the padded sequence."""
        length = len(self._token_of)
        return int(self._token_of[position]) if position < length else self.prompt + position - length

    def _roles(self, total: int) -> list[int]:
        answer = [int(Role.OUTPUT)] * (total - self.prompt)
        if self.trace.tokens is None:
            return [UNKNOWN] * self.prompt + answer
        return self.trace.tokens.roles[self.sample].numpy()[self._columns[: self.prompt]].tolist() + answer

    def _pieces(self, total: int) -> list[str]:
        text = self.trace.text[self.sample] if self.trace.text is not None else ()
        pieces = [text[place] if place < len(text) else "?" for place in self._columns[:total].tolist()]
        return ["" if role == Role.IMAGE else piece for piece, role in zip(pieces, self.roles, strict=True)]

    def opening_token(self) -> int | None:
        """The token to begin with: of the answer's first subject word, else of the question's last one.

        None where neither has one whose row was recorded.
        """
        answer = range(self.prompt, len(self.pieces))
        question = [place for place in range(self.prompt) if self.roles[place] == Role.QUERY]
        told = [places[0] for places in self._subjects(answer)]
        asked = [places[-1] for places in reversed(self._subjects(question))]
        rows = set(self.rows)
        known = (token for token in told + asked if (token if token < self.prompt else token - 1) in rows)
        return next(known, None)

    def _subjects(self, places: Sequence[int]) -> list[list[int]]:
        """The tokens of each subject word among the text of some tokens."""
        pieces = [self.pieces[place] for place in places]
        ends = list(accumulate(map(len, pieces)))
        offsets = [(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]
        words = subject_words("".join(pieces))
        return [[places[number] for number in tokens_of([word], offsets)] for word in words]

    # Numbers --------------------------------------------------------------------------------------------

    @property
    def heads(self) -> int:
        """Number of heads. One of slices and masses must have been recorded."""
        return self._recorded(self.trace).shape[2]

    @staticmethod
    def _recorded(trace: Trace) -> Tensor:
        return next(tensor for tensor in (trace.slices, trace.masses) if tensor is not None)

    @property
    def columns(self) -> str:
        """Which weights were recorded: those of "all" columns, of "image" columns, or "none"."""
        if self.trace.slices is None:
            return "none"
        return "all" if self.trace.slice_columns is None else "image"

    def weights(self, trace: Trace, layer: int) -> Array:
        """[Hq, N, C] fp32 weights, one column per token; 0 where none was recorded.

        Args:
            trace: this one, or another of the same tokens. layer: index among its recorded layers.
        """
        heads = self._recorded(trace).shape[2]
        out = np.zeros((heads, len(self.rows), len(self.pieces)), np.float32)
        if trace.slices is None:
            return out
        slices = trace.slices[layer, self.sample].numpy()[:, self._active]
        if trace.slice_columns is None:
            there = self._columns < slices.shape[-1]
            out[:, :, there] = slices[:, :, self._columns[there]]
        else:
            held = trace.slice_columns[self.sample].numpy()
            out[:, :, self._token_of[held[held >= 0]]] = slices[:, :, held >= 0]
        return out

    def masses(self, trace: Trace, layer: int, weights: Array, roles: Sequence[int]) -> Array | None:
        """[Hq, N, roles] mass of some roles; None where it is not known. Arguments as for `weights`."""
        if trace.masses is not None:
            picked: Array = trace.masses[layer, self.sample].numpy()[:, self._active][..., list(roles)]
            return picked
        if self.columns != "all" or self.trace.tokens is None:
            return None
        has = np.array(self.roles)[:, None] == np.array(roles)
        return weights @ has.astype(np.float32)

    # Pictures -------------------------------------------------------------------------------------------

    @property
    def views(self) -> list[tuple[int, View]]:
        """The views whose grid is known, with their numbers."""
        views = () if self.trace.tokens is None else self.trace.tokens.views[self.sample]
        return [(number, view) for number, view in enumerate(views) if all(view.grid)]

    def pictures(self, images: Sequence[ImageLike] | None) -> list[dict[str, Any]]:
        """For each view its grid, the token of each cell, and as a data URL the part of the image it shows.

        Args:
            images: the pictures that were asked about, in any size, or as the model receives them; one per
                image. None: maps without pictures.

        Raises:
            InputError: a number of images that is not that of the prompt, or an image of another shape.
        """
        tokens = self.trace.tokens
        if tokens is None or not self.views:
            return []
        count = 1 + max(view.image for view in tokens.views[self.sample])
        if images is not None and len(images) != count:
            raise InputError(f"{len(images)} images were given for a sample with {count}; give one for each")
        opened = [None] * count if images is None else [open_image(image) for image in images]
        views_of = Counter(view.image for _, view in self.views)
        out, tiles = [], [0] * count
        boxes = self._boxes(opened)
        for number, view in self.views:
            is_tile = views_of[view.image] > 1 and view.box not in (None, WHOLE)
            tiles[view.image] += is_tile
            part = _part(opened[view.image], view, boxes[number])
            out.append(
                {
                    "label": _label(view, count, tiles[view.image] if is_tile else 0),
                    "image": view.image,
                    "box": view.box if views_of[view.image] > 1 else None,
                    "rows": view.grid[0],
                    "columns": view.grid[1],
                    "tokens": self._token_of[tokens.image_cells(self.sample, number).numpy()].tolist(),
                    "width": None if part is None else part.width,
                    "height": None if part is None else part.height,
                    "source": None if part is None else _data_url(part),
                }
            )
        return out

    def _boxes(self, images: Sequence[Image.Image | None]) -> dict[int, Shares | None]:
        """By number of the view, the part of the picture that was given which it shows."""
        boxes: dict[int, Shares | None] = {}
        for number, image in enumerate(images):
            views = {place: view for place, view in self.views if view.image == number}
            shown = [None] * len(views) if image is None else boxes_on(list(views.values()), image)
            boxes.update(zip(views, shown, strict=True))
        return boxes


def _prompt_length(trace: Trace) -> int:
    """Tokens of the padded prompt."""
    if trace.tokens is not None:
        return trace.tokens.length
    if trace.input_ids is not None:
        return trace.input_ids.shape[1]
    prefill = trace.row_position[trace.row_step == 0]
    return int(prefill.max()) + 1 if len(prefill) else 0


def _answer_length(trace: Trace, sample: int, length: int) -> int:
    """Tokens of a sample's answer that the trace holds."""
    if trace.text is not None:
        return max(0, len(trace.text[sample]) - length)
    return 0 if trace.output_ids is None else trace.output_ids.shape[1]


def _label(view: View, images: int, tile: int) -> str:
    """The caption of a view; the tiles of an image are counted from 1, and 0 is no tile."""
    name = f"image {view.image + 1}" if images > 1 else "image"
    if view.frame is not None:
        return f"{name}, frame {view.frame + 1}"
    return f"{name}, tile {tile}" if tile else name


def _part(image: Image.Image | None, view: View, box: Shares | None) -> Image.Image | None:
    """The part of an image that a view shows, which is `box` of it; None where that is not known."""
    if image is None or box is None or view.frame is not None:
        return None
    (left, top, right, bottom), (width, height) = box, image.size
    edges = round(left * width), round(top * height), round(right * width), round(bottom * height)
    part = image if edges == (0, 0, width, height) else image.crop(edges)
    part = part.copy()
    part.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return part


def _data_url(image: Image.Image) -> str:
    """The picture as a data URL: a PNG, or a JPEG where the PNG is too large."""
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        if buffer.tell() <= _PNG_BYTES:
            break
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
