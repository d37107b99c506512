"""KOSMOS-2 and KOSMOS-2.5: latent queries of one image, written with the ids of other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import BatchFeature, PreTrainedModel

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Media, Piece, whole_images


class Kosmos2(Family):
    """KOSMOS-2: in the places of the image stand ids that count upwards, one per query.

    No text has such ids next to each other: they are the first ones behind `<unk>`. `generate` is the text
    model's; it counts positions of generated tokens from the left end of the padding, so that transformers
    itself answers a left-padded prompt otherwise than the prompt alone.
    """

    name = "kosmos-2"
    model_types: ClassVar[tuple[str, ...]] = ("kosmos-2",)
    step: ClassVar[int] = 1

    def host(self, model: PreTrainedModel) -> PreTrainedModel:
        part: Any = model.text_model
        return part

    def shows_image(self, ids: Sequence[int]) -> list[bool]:
        queries = self.config.latent_query_num
        flags = [False] * len(ids)
        for start in range(len(ids) - queries + 1):
            if all(ids[start + i] == ids[start] + self.step * i for i in range(queries)):
                flags[start : start + queries] = [True] * queries
        return flags

    def split(self, count: int, media: Media) -> list[Piece]:
        queries = self.config.latent_query_num
        return [Piece.placeless(queries)] * whole_images(count, queries, "latent queries")

    def prompt(self, question: str, images: int, system: str | None) -> str:
        if images != 1 or system:
            raise InputError(f"a prompt of {self.name} is one image and a text, without system text")
        return question


class Kosmos2_5(Kosmos2):
    """KOSMOS-2.5: in the places of the image stand as many `<s>` as there are queries.

    Its processor marks those places counting from the left end, padding or not: `gaze.inputs` corrects it.
    """

    name = "kosmos-2.5"
    model_types = ("kosmos-2.5",)
    step = 0

    def host(self, model: PreTrainedModel) -> PreTrainedModel:
        return model

    def corrected(self, inputs: BatchFeature) -> BatchFeature:
        marks, visible = inputs["image_embeds_position_mask"], inputs["attention_mask"]
        padding = (visible == 0).sum(1, keepdim=True)  # on the left
        length = visible.shape[1]
        inputs["image_embeds_position_mask"] = marks.gather(1, (torch.arange(length) - padding) % length)
        return inputs
