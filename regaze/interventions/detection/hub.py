"""Object detectors of transformers: open vocabularies (OWL-ViT, Grounding DINO) and closed ones (DETR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from regaze.errors import InputError, ModelNotFoundError
from regaze.interventions.detection.detections import Detections

#: What ends a text in the prompt of Grounding DINO.
_STOP = "."
#: The name of gaps in COCO's numbers of classes.
_NOTHING = "N/A"


class HubDetector:
    """A detector of transformers.

    Args:
        model: an `AutoModelForZeroShotObjectDetection` (OWL-ViT, OWLv2, Grounding DINO, MM Grounding DINO) or
            an `AutoModelForObjectDetection` (DETR and its kin). processor: its processor.

    Attributes:
        names: what it can find; () for an open vocabulary, which looks for any texts.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model.eval(), processor
        self.is_open = getattr(processor, "tokenizer", None) is not None
        self.names: tuple[str, ...] = () if self.is_open else _class_names(model.config)

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> HubDetector:
        """Load model and processor from the hub or a folder; ModelNotFoundError when that fails."""
        from transformers import (
            AutoImageProcessor,
            AutoModelForObjectDetection,
            AutoModelForZeroShotObjectDetection,
            AutoProcessor,
        )

        try:
            try:
                model = AutoModelForZeroShotObjectDetection.from_pretrained(name, **kwargs)
            except ValueError as error:
                if "Unrecognized configuration class" not in str(error):
                    raise
                closed = AutoModelForObjectDetection.from_pretrained(name, **kwargs)
                return cls(closed, AutoImageProcessor.from_pretrained(name))
            return cls(model, AutoProcessor.from_pretrained(name))
        except (ImportError, OSError, ValueError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ModelNotFoundError(
                f"cannot load the detector {name!r}; give 'demo', an object detector of transformers (a hub "
                f"name or a folder) or any function (image, texts) -> boxes, labels, scores: {reason.strip()}"
            ) from error

    @torch.inference_mode()
    def __call__(self, image: Image.Image, texts: Sequence[str] | None = None) -> Detections:
        """All things found, whatever their score; of a closed vocabulary, those with one of the texts.

        Raises:
            InputError: an open vocabulary without texts to look for.
        """
        return self._open(image, texts) if self.is_open else self._closed(image, texts)

    def _closed(self, image: Image.Image, texts: Sequence[str] | None) -> Detections:
        inputs = self.processor(images=[image], return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        (found,) = self.processor.post_process_object_detection(
            outputs, threshold=-1.0, target_sizes=[(image.height, image.width)]
        )
        labels = [_class_name(self.model.config, int(number)) for number in found["labels"]]
        wanted = None if texts is None else {text.strip().casefold() for text in texts}
        return _detections(found["boxes"], labels, found["scores"]).chosen(
            [
                i
                for i, label in enumerate(labels)
                if label != _NOTHING and (wanted is None or label.casefold() in wanted)
            ]
        )

    def _open(self, image: Image.Image, texts: Sequence[str] | None) -> Detections:
        texts = [" ".join(text.replace(_STOP, " ").split()) for text in texts or ()]
        if not all(texts) or not texts:
            raise InputError(
                f"{type(self.model).__name__} finds what it is asked for: give the names to look for, such "
                "as MARINE(objects=('dog', 'cat')), or a detector with a closed vocabulary"
            )
        inputs = self.processor(images=[image], text=[texts], return_tensors="pt", padding=True)
        inputs = inputs.to(self.model.device)
        self._check_length(inputs["input_ids"].shape[-1], len(texts))
        outputs = self.model(**inputs)
        (found,) = self.processor.post_process_grounded_object_detection(
            outputs, threshold=-1.0, target_sizes=[(image.height, image.width)]
        )
        if outputs.logits.shape[-1] == len(texts):  # OWL: a logit per text
            numbers = outputs.logits[0].argmax(-1)
        else:  # Grounding DINO: a logit per token of "a dog. a cat."
            numbers = _text_of_token(self.processor.tokenizer, inputs["input_ids"][0], outputs.logits[0])
        return _detections(found["boxes"], [texts[number] for number in numbers.tolist()], found["scores"])

    def _check_length(self, tokens: int, texts: int) -> None:
        limit = getattr(self.model.config, "max_text_len", tokens)  # the model would cut the rest
        if tokens > limit:
            raise InputError(
                f"{type(self.model).__name__} reads {limit} tokens at once, but the {texts} names to look "
                f"for are {tokens}; give fewer"
            )


def _text_of_token(tokenizer: Any, ids: Tensor, logits: Tensor) -> Tensor:
    """[queries] number of the text that each query's strongest token [queries, tokens] belongs to."""
    stops = ids == tokenizer.convert_tokens_to_ids(_STOP)
    before = stops.long().cumsum(0) - stops.long()  # a text's stop belongs to it
    strongest = logits[:, : len(ids)].argmax(-1)
    return before[strongest].clamp_max(int(stops.sum()) - 1)


def _detections(boxes: Tensor, labels: Sequence[str], scores: Tensor) -> Detections:
    rows = [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes.tolist()]
    return Detections(tuple(rows), tuple(labels), tuple(scores.float().tolist()))


def _class_name(config: Any, number: int) -> str:
    names: dict[int, str] = config.id2label
    return names.get(number, str(number))


def _class_names(config: Any) -> tuple[str, ...]:
    """The classes that stand for something."""
    return tuple(dict.fromkeys(name for name in config.id2label.values() if name != _NOTHING))
