"""Scorers for `faithfulness` that hide cells of an image, or tokens of a text, from a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from regaze.display import brief
from regaze.errors import BadParameterError, InputError, ShapeError
from regaze.toolkit.analysis.answers import answer_log_probs
from regaze.toolkit.prompts.geometry import Geometry, geometry_of
from regaze.toolkit.prompts.images import ImageLike, open_image
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.wrap import Gaze

Fill = Literal["mean", "blur", "black"]
#: Standard deviation of "blur" as a share of the image's shorter side; objects become unrecognisable.
_BLUR = 0.1


class ImageCells:
    """A `Scorer` that hides cells of an image by replacing their pixels before the image processor.

    Args:
        gaze: the wrapped model. image, question: the prompt (one image).
        answer: [T] ids, such as the model's own from `greedy_answer`.
        grid: (rows, columns) of the regions; None: the model's own grid of image tokens.
        fill: replacement of hidden pixels: the image's "mean" colour, a strong "blur" of the image, or
            "black". No choice is neutral: a flat patch can be seen, and a blur keeps colours.
        geometry: of image and processor; None: measured by `geometry_of`. Pixels that the processor crops
            away are not changed.
        batch_size: variants per forward. system: a system message.

    Attributes:
        count: number of cells.

    Raises:
        InputError: no image processor, or a model whose image tokens do not form one grid.
    """

    gaze: Gaze
    image: Image.Image
    question: str
    answer: Tensor
    batch_size: int
    system: str | None

    def __init__(
        self,
        gaze: Gaze,
        image: ImageLike,
        question: str,
        answer: Tensor,
        *,
        grid: tuple[int, int] | None = None,
        fill: Fill = "mean",
        geometry: Geometry | None = None,
        batch_size: int = 32,
        system: str | None = None,
    ):
        processor = getattr(gaze.processor, "image_processor", None)
        if processor is None:
            raise InputError("this model has no image processor, so it sees no images to hide")
        self.gaze, self.image, self.question, self.answer = gaze, open_image(image), question, answer
        self.batch_size, self.system = batch_size, system
        self.geometry: Geometry = (
            geometry_of(processor, self.image.size, gaze.family.pixels) if geometry is None else geometry
        )
        self.grid: tuple[int, int] = self._own_grid() if grid is None else grid
        self.count: int = self.grid[0] * self.grid[1]
        self._replacement = _replacement(self.image, fill)
        rows, columns = self.grid
        boxes = [
            self.geometry.cell_box(row, column, self.grid) for row in range(rows) for column in range(columns)
        ]
        self._boxes = [None if box is None else tuple(round(edge) for edge in box) for box in boxes]

    def __repr__(self) -> str:
        rows, columns = self.grid
        about = f"{brief(self.question)}, answer of {len(self.answer)} tokens"
        return f"ImageCells({rows} x {columns} cells, {about})"

    def __call__(self, hidden: Tensor) -> Tensor:
        """[m, cells] bool in row-major order -> [m, T] log-probabilities of the answer's tokens."""
        check_hidden(hidden, self.count)
        scores = []
        for part in hidden.split(self.batch_size):
            images = [self.without(cells) for cells in part]
            inputs = self.gaze.inputs(images, [self.question] * len(part), self.system)
            scores.append(answer_log_probs(self.gaze.model, inputs, self.answer))
        return torch.cat(scores)

    def without(self, cells: Tensor) -> Image.Image:
        """The image with some cells, [cells] bool, hidden."""
        pixels = np.array(self.image)
        for place in cells.nonzero().flatten().tolist():
            if (box := self._boxes[place]) is not None:
                left, top, right, bottom = box
                pixels[top:bottom, left:right] = self._replacement[top:bottom, left:right]
        return Image.fromarray(pixels)

    def _own_grid(self) -> tuple[int, int]:
        grids = self.gaze.tokens(self.gaze.inputs([self.image], [self.question], self.system)).grids[0]
        if len(grids) != 1:
            seen = f"it sees {len(grids)} pictures of the image" if grids else "its grid is not known"
            raise InputError(
                f"cells cannot be read from this model's image tokens ({seen}); pass grid=(rows, columns)"
            )
        return grids[0]


def _replacement(image: Image.Image, fill: str) -> np.ndarray:
    """[H, W, 3] uint8, the pixels of hidden cells."""
    pixels = np.asarray(image)
    if fill == "blur":
        return np.asarray(image.filter(ImageFilter.GaussianBlur(_BLUR * min(image.size))))
    if fill not in ("mean", "black"):
        raise BadParameterError(f'fill must be "mean", "blur" or "black", got {fill!r}')
    colour = pixels.mean((0, 1)).round() if fill == "mean" else np.zeros(3)
    return np.broadcast_to(colour.astype(np.uint8), pixels.shape)


class TextTokens:
    """A `Scorer` that hides text tokens of the prompt with the attention mask.

    The other tokens keep their positions in models that count columns, such as Llama; models that count
    visible tokens (three axes in Qwen-VL) close the gap.

    Args:
        gaze, question, answer, batch_size, system: as for `ImageCells`. images: of the prompt, or None.
        roles: whose tokens are the regions.

    Attributes:
        count: number of tokens. columns: [n] their columns in the prompt. texts: their text.

    Raises:
        InputError: no token has such a role, or the prompt's last token has, whose row predicts the answer.
    """

    gaze: Gaze
    images: Any
    question: str
    answer: Tensor
    batch_size: int
    system: str | None

    def __init__(
        self,
        gaze: Gaze,
        images: Any,
        question: str,
        answer: Tensor,
        *,
        roles: Sequence[Role] = (Role.QUERY,),
        batch_size: int = 32,
        system: str | None = None,
    ):
        self.gaze, self.images, self.question, self.answer = gaze, images, question, answer
        self.batch_size, self.system = batch_size, system
        inputs = self._inputs(1)
        mask = gaze.tokens(inputs).mask(*roles)[0]
        if not bool(mask.any()) or bool(mask[-1]):
            what = "the last token, whose row predicts the answer" if bool(mask.any()) else "no token"
            names = ", ".join(Role(role).name for role in roles)
            raise InputError(f"the roles {names} hold {what}; choose others, such as QUERY")
        self.columns: Tensor = mask.nonzero().flatten()
        self.count: int = len(self.columns)
        ids = inputs["input_ids"][0].cpu()[self.columns].tolist()
        self.texts: list[str] = [str(gaze.reader.tokenizer.decode([token])) for token in ids]

    def __repr__(self) -> str:
        about = f"{brief(self.question)}, answer of {len(self.answer)} tokens"
        return f"TextTokens({self.count} tokens of {about})"

    def __call__(self, hidden: Tensor) -> Tensor:
        """[m, n] bool -> [m, T] log-probabilities of the answer's tokens."""
        check_hidden(hidden, self.count)
        scores = []
        for part in hidden.split(self.batch_size):
            inputs = self._inputs(len(part))
            mask = inputs["attention_mask"].clone()
            mask[:, self.columns.to(mask.device)] = (~part).to(mask)
            scores.append(answer_log_probs(self.gaze.model, {**inputs, "attention_mask": mask}, self.answer))
        return torch.cat(scores)

    def _inputs(self, count: int) -> Any:
        return self.gaze.inputs([self.images] * count, [self.question] * count, self.system)


def check_hidden(hidden: Tensor, count: int) -> None:
    """Raise ShapeError unless `hidden` is [m, count] bool."""
    if hidden.dim() != 2 or hidden.shape[1] != count or hidden.dtype != torch.bool:
        raise ShapeError(
            f"expected which regions are hidden as [m, {count}] bool, got {list(hidden.shape)} {hidden.dtype}"
        )
