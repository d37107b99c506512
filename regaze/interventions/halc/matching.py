"""How well texts match an image, from CLIP or any function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image

from regaze.errors import InputError, ModelNotFoundError

#: (image, n texts) -> n numbers, the higher the better the match.
Matcher = Callable[[Image.Image, list[str]], Any]


class ClipMatcher:
    """Similarity of image and text by a CLIP model of transformers."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model.eval(), processor

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> ClipMatcher:
        """Load model and processor from the hub or a folder; ModelNotFoundError when that fails."""
        from transformers import CLIPModel, CLIPProcessor

        try:
            return cls(CLIPModel.from_pretrained(name, **kwargs), CLIPProcessor.from_pretrained(name))
        except (OSError, ValueError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ModelNotFoundError(
                f"cannot load the matcher {name!r}; give a CLIP model of transformers (a hub name or a "
                f"folder) or any function (image, texts) -> a number for each: {reason.strip()}"
            ) from error

    @torch.inference_mode()
    def __call__(self, image: Image.Image, texts: list[str]) -> list[float]:
        """The similarity of each text, which is cut at the length that the model reads."""
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        inputs = self.processor(text=texts, images=[image], **options).to(self.model.device)
        scores: list[float] = self.model(**inputs).logits_per_image[0].float().tolist()
        return scores


@lru_cache(maxsize=1)
def clip_matcher(name: str, device: str) -> ClipMatcher:
    """`ClipMatcher.from_pretrained` on a device; the last one stays loaded."""
    return ClipMatcher.from_pretrained(name, device_map=device)


def match(matcher: Matcher, image: Image.Image, texts: Sequence[str]) -> list[float]:
    """What a matcher gives for each text. Raises InputError where it gives something else."""
    found = matcher(image, list(texts))
    try:
        scores = [float(score) for score in found]
    except (TypeError, ValueError) as error:
        raise InputError(f"a matcher returns a number for each text, it returned {found!r}") from error
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise InputError(f"a matcher returns a finite number for each of {len(texts)} texts, got {scores}")
    return scores
