"""Training batches: newly drawn scenes, and conversations about them as padded token rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from transformers import LlavaProcessor

from regaze.demo.training.conversations import SYSTEM, ConversationSampler
from regaze.demo.training.model import pixel_batch
from regaze.demo.training.recipe import DataMix
from regaze.demo.training.render import PATCH, SIDE, Rendered, render_scene
from regaze.demo.training.vocabulary import IMAGE

IGNORED = -100  #: label of a position that is not trained on
SCENES_PER_STAGE = 100_000_000  # stages draw from separate ranges of scene numbers


def scene_batches(seed: int, stage: int, size: int) -> Iterator[tuple[int, list[Rendered]]]:
    """Endless batches of new training scenes as (number of the first, scenes); each stage has its own."""
    index = stage * SCENES_PER_STAGE
    while True:
        yield index, [render_scene(seed, "train", index + i) for i in range(size)]
        index += size


class Collator:
    """Turns scenes into padded token rows with the answers as labels."""

    def __init__(self, processor: LlavaProcessor, data: DataMix, seed: int) -> None:
        tokenizer = processor.tokenizer
        self.data, self.seed = data, seed
        self.bos, self.eos, self.pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        self.image_tokens = IMAGE * (SIDE // PATCH) ** 2
        self.mean, self.std = processor.image_processor.image_mean, processor.image_processor.image_std
        self.encode = lru_cache(maxsize=50_000)(lambda text: tokenizer.encode(text, add_special_tokens=False))

    def row(
        self, scene: Rendered, rng: np.random.Generator, with_image: bool = True
    ) -> tuple[list[int], list[int], list[float]]:
        """One conversation as (ids, labels, weights), formatted like the chat template.

        A token of an answer of n tokens has the weight 1/sqrt(n), so that the many words of descriptions do
        not outweigh the answers yes and no.
        """
        data = self.data
        count = int(rng.integers(data.turns[0], data.turns[1] + 1))
        sampler = ConversationSampler(scene, rng, data.noise)
        turns = sampler.conversation(count, data.captions, data.existence)
        ids, labels, weights = [self.bos], [IGNORED], [0.0]
        opening = f"{SYSTEM} " if rng.random() < data.system else ""
        for number, turn in enumerate(turns):
            image = f"{self.image_tokens}\n" if with_image and number == 0 else ""
            prompt = self.encode(f"{opening}USER: {image}{turn.question} ASSISTANT:")
            answer = [*self.encode(f" {turn.answer}"), self.eos]
            ids += [*prompt, *answer]
            labels += [IGNORED] * len(prompt) + answer
            weights += [0.0] * len(prompt) + [len(answer) ** -0.5] * len(answer)
            opening = ""
        return ids, labels, weights

    def __call__(self, index: int, scenes: list[Rendered]) -> dict[str, torch.Tensor]:
        """Conversations about ``scenes``, the first of which has number ``index``.

        Returns:
            ``input_ids`` and ``labels`` [B, L] padded on the right, ``weights`` [B, L] of the labels, and
            ``pixel_values`` [N, 3, 112, 112] of the N rows that have an image.
        """
        rows, pixels = [], []
        for offset, scene in enumerate(scenes):
            rng = np.random.default_rng([self.seed, 1_000, index + offset])
            with_image = rng.random() >= self.data.text_only
            rows.append(self.row(scene, rng, with_image))
            if with_image:
                pixels.append(scene.pixels)
        length = max(len(ids) for ids, _, _ in rows)
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), IGNORED)
        weights = torch.zeros(len(rows), length)
        for i, (row_ids, row_labels, row_weights) in enumerate(rows):
            ids[i, : len(row_ids)] = torch.tensor(row_ids)
            labels[i, : len(row_labels)] = torch.tensor(row_labels)
            weights[i, : len(row_weights)] = torch.tensor(row_weights)
        pixel_values = pixel_batch(pixels, self.mean, self.std)
        return {"input_ids": ids, "labels": labels, "weights": weights, "pixel_values": pixel_values}
