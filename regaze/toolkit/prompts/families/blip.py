"""BLIP-2 and InstructBLIP: the queries of a Q-Former stand before the text."""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature, PreTrainedModel

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, Media, Piece, whole_images


class Blip2(Family):
    """`Blip2ForConditionalGeneration`; its queries see the picture, and have no place in it."""

    name = "blip-2"
    model_types = ("blip-2",)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        return () if self.config.image_token_id is None else (self.config.image_token_id,)

    def split(self, count: int, media: Media) -> list[Piece]:
        queries = self.config.num_query_tokens
        return [Piece.placeless(queries)] * whole_images(count, queries, "queries of the Q-Former")

    def host(self, model: PreTrainedModel) -> PreTrainedModel:
        part: Any = model.language_model  # whose `generate` the model's calls
        return part

    def prompt(self, question: str, images: int, system: str | None) -> str:
        return f"Question: {_alone(self, question, images, system)} Answer:"


class InstructBlip(Blip2):
    """`InstructBlipForConditionalGeneration`; its queries see the question, too.

    Its processor pads the Q-Former's text on the side of the language model's, but the Q-Former counts
    positions from the first token: `gaze.inputs` corrects it.
    """

    name = "instructblip"
    model_types = ("instructblip",)

    def corrected(self, inputs: BatchFeature) -> BatchFeature:
        visible = inputs["qformer_attention_mask"]
        order = visible.argsort(dim=1, descending=True, stable=True)
        for name in ("qformer_input_ids", "qformer_attention_mask"):
            inputs[name] = inputs[name].gather(1, order)
        return inputs

    def prompt(self, question: str, images: int, system: str | None) -> str:
        return _alone(self, question, images, system)


def _alone(family: Any, question: str, images: int, system: str | None) -> str:
    if images != 1 or system:
        raise InputError(f"a prompt of {family.name} is one image and a question, without system text")
    return question
