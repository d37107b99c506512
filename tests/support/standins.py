"""Stand-ins for a wrapped model, and a small POPE, for tests of the runner that need no weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from regaze.eval import Pope

ROWS = [("a", "yes"), ("a", "no"), ("b", "yes"), ("b", "no"), ("c", "yes")]


class Blind:
    """An intervention under which the stand-in below answers no."""

    def __init__(self, strength: float = 1.0):
        self.strength = strength

    def to_dict(self) -> dict[str, Any]:
        return {"method": "blind", "strength": self.strength}


class StandIn:
    """Answers yes, and no while edited. Records its prompts, images and options.

    Args:
        fails_at: a word; a batch with a prompt that contains it raises `error`.
        max_batch: a larger batch runs out of memory.
        stops_after: number of prompts after which it raises KeyboardInterrupt.
    """

    def __init__(
        self,
        fails_at: str | None = None,
        error: Exception | None = None,
        max_batch: int | None = None,
        stops_after: int | None = None,
    ) -> None:
        self.batches: list[list[str]] = []
        self.images: list[list[Path]] = []
        self.options: list[dict[str, Any]] = []
        self.active: tuple[Any, ...] = ()
        self.fails_at, self.error = fails_at, error or RuntimeError("a bad day")
        self.max_batch, self.stops_after = max_batch, stops_after

    @property
    def prompts(self) -> list[str]:
        return [prompt for batch in self.batches for prompt in batch]

    @contextmanager
    def using(self, *interventions: Any) -> Iterator[None]:
        self.active = interventions
        try:
            yield
        finally:
            self.active = ()

    def ask(self, images: Sequence[Any], questions: Sequence[str], **kwargs: Any) -> list[str]:
        if self.max_batch is not None and len(questions) > self.max_batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if self.fails_at is not None and any(self.fails_at in question for question in questions):
            raise self.error
        if self.stops_after is not None and len(self.prompts) + len(questions) > self.stops_after:
            raise KeyboardInterrupt
        self.batches.append(list(questions))
        self.images += images
        self.options.append(kwargs)
        return ["No" if self.active else "Yes"] * len(questions)


def write_pope(folder: Path, rows: Sequence[tuple[str, str]] = tuple(ROWS)) -> Pope:
    """A question per row (image, label), all different: "a0?", "a1?", "b2?", ... with a suffix."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for shade, name in enumerate(sorted({image for image, _ in rows})):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(images / f"{name}.png")
    lines = [
        json.dumps({"image": f"{image}.png", "text": f"{image}{number}?", "label": label})
        for number, (image, label) in enumerate(rows)
    ]
    (folder / "q.jsonl").write_text("\n".join(lines))
    return Pope.from_files({"random": folder / "q.jsonl"}, images, suffix=" !")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def leftmost(image: Any, text: str) -> tuple[np.ndarray, float]:
    """For AGLA in BLIP's place: the more about the text, the more to the left; longer texts match better."""
    return np.linspace(1, 0, 8)[None].repeat(8, 0), min(1.0, len(text) / 30)


def painted(texts):
    """In the place of an image generator: random pixels that follow from each text."""
    pictures = []
    for text in texts:
        rng = np.random.default_rng(list(text.encode()))
        pictures.append(Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)))
    return pictures


def spotted(image, texts):
    """In the place of a detector: all that is looked for, else a dog and a cup, somewhere in the image."""
    names = list(texts or ("dog", "cup", "dog"))
    rng = np.random.default_rng([int(np.asarray(image, dtype=np.int64).sum()), len("".join(names))])
    corners = rng.uniform(0.0, 0.6, (len(names), 2)) * image.size
    boxes = np.concatenate([corners, corners + 0.3 * np.array(image.size)], 1)
    return {"boxes": boxes, "labels": names, "scores": np.linspace(0.99, 0.9, len(names))}
