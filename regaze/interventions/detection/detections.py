"""What a detector is, and what it found: boxes, labels and scores.

A detector is any function (image, texts) -> {"boxes": [n, 4], "labels": n texts, "scores": [n]}, or these
three in a tuple. It is given a PIL image, and the texts to look for, or None for whatever it knows. Boxes are
left, upper, right and lower edges in pixels of the image; scores are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from regaze.errors import InputError

#: Left, upper, right and lower edge in pixels of an image.
Box = tuple[float, float, float, float]
Detector = Callable[[Image.Image, Sequence[str] | None], Any]
_PARTS = ("boxes", "labels", "scores")
_EXPECTED = (
    'a detector (image, texts) returns {"boxes": [n, 4], "labels": n texts, "scores": n numbers}, or these '
    "three in a tuple"
)


@dataclass(frozen=True)
class Detections:
    """The n things that were found in an image."""

    boxes: tuple[Box, ...] = ()
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()

    def best(self, threshold: float = 0.0) -> Detections:
        """Those with a score of at least `threshold`, best first; equals keep their order."""
        order = sorted(range(len(self.scores)), key=lambda i: -self.scores[i])
        return self.chosen([i for i in order if self.scores[i] >= threshold])

    def chosen(self, numbers: Sequence[int]) -> Detections:
        """Those with these numbers, in their order."""
        return Detections(
            tuple(self.boxes[i] for i in numbers),
            tuple(self.labels[i] for i in numbers),
            tuple(self.scores[i] for i in numbers),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, each once."""
        return tuple(dict.fromkeys(self.labels))


def detect(detector: Detector, image: Image.Image, texts: Sequence[str] | None = None) -> Detections:
    """What a detector finds in an image; boxes are cut at its edges, and those outside it left out.

    Raises:
        InputError: it returned something else than boxes, labels and scores.
    """
    boxes, labels, scores = _parts(detector(image, None if texts is None else list(texts)))
    found = Detections(_boxes(boxes), _labels(labels), _scores(scores))
    counts = [len(found.boxes), len(found.labels), len(found.scores)]
    if len(set(counts)) > 1:
        given = ", ".join(f"{count} {part}" for count, part in zip(counts, _PARTS, strict=True))
        raise InputError(f"{_EXPECTED}, as many of each; it returned {given}")
    width, height = image.size
    cut = tuple(
        (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        for x0, y0, x1, y1 in found.boxes
    )
    inside = [i for i, (x0, y0, x1, y1) in enumerate(cut) if x0 < x1 and y0 < y1]
    return Detections(cut, found.labels, found.scores).chosen(inside)


def _parts(found: Any) -> tuple[Any, Any, Any]:
    if isinstance(found, Detections):
        return found.boxes, found.labels, found.scores
    if isinstance(found, Mapping):
        missing = [part for part in _PARTS if part not in found]
        if missing:
            given = ", ".join(map(str, found)) or "nothing"
            raise InputError(f"{_EXPECTED}; it returned {given}, without {' and '.join(missing)}")
        boxes, labels, scores = (found[part] for part in _PARTS)
        return boxes, labels, scores
    if isinstance(found, (tuple, list)) and len(found) == len(_PARTS):
        boxes, labels, scores = found
        return boxes, labels, scores
    raise InputError(f"{_EXPECTED}; it returned {type(found).__name__}")


def _boxes(given: Any) -> tuple[Box, ...]:
    try:
        rows = torch.as_tensor(given if hasattr(given, "shape") else list(map(list, given)))
        boxes = rows.detach().double().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{_EXPECTED}; its boxes are {_short(given)}") from error
    if not boxes.numel():
        return ()
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise InputError(f"{_EXPECTED}; its boxes are {list(boxes.shape)}")
    wrong = [box for box in boxes.tolist() if not all(map(math.isfinite, box)) or not _ordered(box)]
    if wrong:
        raise InputError(
            f"a box is left, upper, right and lower edge in pixels, the detector gave {wrong[0]}"
        )
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist())


def _ordered(box: Sequence[float]) -> bool:
    return box[0] <= box[2] and box[1] <= box[3]


def _labels(given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise InputError(f"{_EXPECTED}; its labels are {_short(given)}")
    labels = tuple(given)
    wrong = [label for label in labels if not isinstance(label, str)]
    if wrong:
        raise InputError(
            f"{_EXPECTED}; a label is {_short(wrong[0])}: give names in the place of class numbers"
        )
    return tuple(label.strip() for label in labels)


def _scores(given: Any) -> tuple[float, ...]:
    try:
        scores = tuple(float(score) for score in given)
    except (TypeError, ValueError) as error:
        raise InputError(f"{_EXPECTED}; its scores are {_short(given)}") from error
    wrong = [score for score in scores if not 0.0 <= score <= 1.0]
    if wrong:
        raise InputError(f"scores are in [0, 1], the detector gave {wrong[0]}")
    return scores


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
