"""Hiding parts of a prompt from a model, and what that does to its answer: scorers for `faithfulness`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from regaze.errors import BadParameterError, InputError, ShapeError
from regaze.toolkit.prompts.geometry import Geometry, geometry_of
from regaze.toolkit.prompts.images import ImageLike, open_image
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.wrap import Gaze

Fill = Literal["mean", "blur", "black"]
#: Standard deviation of "blur" as a share of the image's shorter side: usual things become unreadable.
_BLUR = 0.1


def answer_log_probs(model: Any, inputs: Any, answer: Tensor) -> Tensor:
    """Log-probability of each token of given answers, in one forward, [B, T] fp32 on the CPU.

    Args:
        model: a transformers model; interventions that are active on it act.
        inputs: of B prompts, as `gaze.inputs` makes them (padded on the left).
        answer: [T] or [B, T] ids, the tokens as the model emits them; -100 fills up shorter answers, at the
            end, and counts 0.

    Raises:
        ShapeError: answers that do not fit the prompts. InputError: prompts padded on the right.
    """
    ids = inputs["input_ids"]
    answer = torch.as_tensor(answer, device=ids.device)
    answer = answer.expand(len(ids), -1) if answer.dim() == 1 else answer
    if answer.dim() != 2 or len(answer) != len(ids) or not answer.shape[1]:
        raise ShapeError(f"{len(ids)} prompts need answers [{len(ids)}, T], got {list(answer.shape)}")
    given = answer >= 0
    everything = _continued(model, inputs, answer.clamp_min(0), given)
    count = answer.shape[1]
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = count + 1
    with torch.inference_mode():
        logits = model(**everything, **options).logits[:, -count - 1 : -1]
    chosen = logits.float().log_softmax(-1).gather(-1, answer.clamp_min(0)[..., None])[..., 0]
    return torch.where(given, chosen, 0.0).cpu()


def _continued(model: Any, inputs: Any, answer: Tensor, given: Tensor) -> dict[str, Any]:
    """The arguments of a forward over prompt and answer."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if not bool(mask[:, -1].all()):
        raise InputError("prompts must be padded on the left, so that all end in the last column")
    both = {**inputs, "input_ids": torch.cat([ids, answer], 1)}
    both["attention_mask"] = torch.cat([mask, given.to(mask)], 1)
    for name in ("token_type_ids", "mm_token_type_ids"):  # 0 is text
        if both.get(name) is not None:
            both[name] = torch.cat([both[name], torch.zeros_like(answer)], 1)
    return both


def greedy_answer(gaze: Gaze, images: Any, question: str, max_new_tokens: int = 32) -> Tensor:
    """The ids [T] of the model's own answer to one question, without the token that ends it.

    Raises:
        InputError: the model ends at once, so there is no answer to explain.
    """
    inputs = gaze.inputs([images], [question])
    tokenizer = gaze.reader.tokenizer
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    with torch.inference_mode():
        ids = gaze.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]  # type: ignore[operator]
    ids = ids[~torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))].cpu()
    if not len(ids):
        raise InputError(f"the model answers {question!r} with nothing")
    return ids


class ImageCells:
    """A `Scorer` that hides cells of an image by its pixels, before the processor sees it.

    Args:
        gaze: the wrapped model. image, question: the prompt (one image).
        answer: [T] ids; `greedy_answer` has the model's own.
        grid: (rows, columns) of the regions; None: the model's own grid of image tokens.
        fill: what stands in for hidden pixels: the image's "mean" colour, the image under a strong "blur", or
            "black". No choice is neutral: a flat patch is something to see, too, a blur leaves colours.
        geometry: of image and processor; None: measured by `geometry_of`. What was cropped away stays.
        batch_size: variants per forward. system: a system message.

    Attributes:
        count: how many cells there are.
    """

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
        self.geometry = geometry_of(processor, self.image.size) if geometry is None else geometry
        self.grid = self._own_grid() if grid is None else grid
        self.count = self.grid[0] * self.grid[1]
        self._stand_in = _stand_in(self.image, fill)
        rows, columns = self.grid
        boxes = [
            self.geometry.cell_box(row, column, self.grid) for row in range(rows) for column in range(columns)
        ]
        self._boxes = [None if box is None else tuple(round(edge) for edge in box) for box in boxes]

    def __call__(self, hidden: Tensor) -> Tensor:
        """[m, cells] bool, row-major -> [m, T] log-probabilities of the answer's tokens."""
        check_hidden(hidden, self.count)
        scores = []
        for part in hidden.split(self.batch_size):
            images = [self.without(cells) for cells in part]
            inputs = self.gaze.inputs(images, [self.question] * len(part), self.system)
            scores.append(answer_log_probs(self.gaze.model, inputs, self.answer))
        return torch.cat(scores)

    def without(self, cells: Tensor) -> Image.Image:
        """The image with some cells, [cells] bool, hidden: what is sent to the processor."""
        pixels = np.array(self.image)
        for place in cells.nonzero().flatten().tolist():
            if (box := self._boxes[place]) is not None:
                left, top, right, bottom = box
                pixels[top:bottom, left:right] = self._stand_in[top:bottom, left:right]
        return Image.fromarray(pixels)

    def _own_grid(self) -> tuple[int, int]:
        grids = self.gaze.tokens(self.gaze.inputs([self.image], [self.question], self.system)).grids[0]
        if len(grids) != 1:
            seen = f"it sees {len(grids)} pictures of the image" if grids else "its grid is not known"
            raise InputError(
                f"cells cannot be read from this model's image tokens ({seen}); pass grid=(rows, columns)"
            )
        return grids[0]


def _stand_in(image: Image.Image, fill: str) -> np.ndarray:
    """[H, W, 3] uint8, the pixels to take where a cell is hidden."""
    pixels = np.asarray(image)
    if fill == "blur":
        return np.asarray(image.filter(ImageFilter.GaussianBlur(_BLUR * min(image.size))))
    if fill not in ("mean", "black"):
        raise BadParameterError(f'fill must be "mean", "blur" or "black", got {fill!r}')
    colour = pixels.mean((0, 1)).round() if fill == "mean" else np.zeros(3)
    return np.broadcast_to(colour.astype(np.uint8), pixels.shape)


class TextTokens:
    """A `Scorer` that hides text tokens of the prompt: no other token can attend to them.

    The others keep their places where positions count columns, as in Llama; models that count visible tokens
    close the gap (Qwen-VL's three axes).

    Args:
        gaze, question, answer, batch_size, system: as for `ImageCells`. images: of the prompt, or None.
        roles: whose tokens are the regions.

    Attributes:
        count: how many tokens there are. columns: [n] where they are in the prompt. texts: what they say.

    Raises:
        InputError: no token has such a role, or the prompt's last one has; its row predicts the answer.
    """

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
        self.columns = mask.nonzero().flatten()
        self.count = len(self.columns)
        ids = inputs["input_ids"][0].cpu()[self.columns].tolist()
        self.texts = [str(gaze.reader.tokenizer.decode([token])) for token in ids]

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
    """ShapeError unless `hidden` says of `count` regions which are hidden."""
    if hidden.dim() != 2 or hidden.shape[1] != count or hidden.dtype != torch.bool:
        raise ShapeError(
            f"expected which regions are hidden as [m, {count}] bool, got {list(hidden.shape)} {hidden.dtype}"
        )
