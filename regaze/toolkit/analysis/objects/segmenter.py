"""Segmenters: masks from points, by SAM or SAM 2 of transformers, or by any function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForMaskGeneration, AutoProcessor

from regaze.display import short_repr
from regaze.errors import ModelNotFoundError


class Segment(NamedTuple):
    """What a segmenter found.

    Attributes:
        mask: [H, W] bool over the image's pixels. score: its own estimate of the overlap with the object.
        logits: what it takes as a prompt to refine this mask; None where it takes none.
    """

    mask: Tensor
    score: float
    logits: Tensor | None = None

    def __repr__(self) -> str:
        return short_repr(self)


#: From points [n, 2] (x, y in pixels), labels [n] (1: on the object, 0: not) and the logits of an earlier
#: mask or None, to a segment of one image.
PromptedSegmenter = Callable[[Tensor, Tensor, Tensor | None], Segment]
#: Reads an image once, and gives what answers prompts about it.
Segmenter = Callable[[Image.Image], PromptedSegmenter]


class SamSegmenter:
    """transformers' `SamModel` or `Sam2Model` as a segmenter; of its masks for a prompt the best one.

    Args:
        model, processor: of the same checkpoint, such as facebook/sam-vit-base or facebook/sam2.1-hiera-tiny.
            SAM 2's processor needs torchvision.
    """

    model: Any
    processor: Any

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model.eval(), processor

    def __repr__(self) -> str:
        return f"SamSegmenter({type(self.model).__name__} on {self.model.device})"

    def __call__(self, image: Image.Image) -> PromptedSegmenter:
        """Encode an image, which takes far longer than prompts about it."""
        with torch.inference_mode():
            pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
            embeddings = self.model.get_image_embeddings(pixels.to(self.model.device, self.model.dtype))

        def segment(points: Tensor, labels: Tensor, logits: Tensor | None = None) -> Segment:
            return self._segment(image, embeddings, points, labels, logits)

        return segment

    def _segment(
        self, image: Image.Image, embeddings: Any, points: Tensor, labels: Tensor, logits: Tensor | None
    ) -> Segment:
        prompt = self.processor(
            images=image,
            input_points=[[points.tolist()]],
            input_labels=[[labels.tolist()]],
            return_tensors="pt",
        )
        device, dtype = self.model.device, self.model.dtype
        with torch.inference_mode():
            output = self.model(
                image_embeddings=embeddings,
                input_points=prompt["input_points"].to(device, dtype),
                input_labels=prompt["input_labels"].to(device),
                input_masks=None if logits is None else logits.to(device, dtype),
                multimask_output=True,
            )
        best = int(output.iou_scores[0, 0].argmax())
        chosen = output.pred_masks[:, :, best : best + 1]  # [1, 1, 1, h, w]
        sizes = [prompt[name] for name in ("original_sizes", "reshaped_input_sizes") if name in prompt]
        mask = self.processor.post_process_masks(chosen.float().cpu(), *sizes)[0]
        return Segment(mask[0, 0].bool(), float(output.iou_scores[0, 0, best]), chosen[:, 0].clone())


def load_segmenter(name_or_path: str, device: str | None = None) -> SamSegmenter:
    """SAM or SAM 2 from the hub or a folder.

    Raises:
        ModelNotFoundError: transformers cannot find or read it.
    """
    try:
        processor = AutoProcessor.from_pretrained(name_or_path)
        model = AutoModelForMaskGeneration.from_pretrained(name_or_path)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelNotFoundError(f"cannot load the segmenter {name_or_path!r}: {reason}") from error
    return SamSegmenter(model if device is None else model.to(device), processor)
