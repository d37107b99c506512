"""BLIP-2 and InstructBLIP: the queries of a Q-Former come before the text."""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature, PreTrainedModel

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import MediaInputs, ViewTokens, VisionFamily, count_images


class Blip2(VisionFamily):
    """`Blip2ForConditionalGeneration`. Each query attends to all of the image, and has no place in it."""

    name = "blip-2"
    model_types = ("blip-2",)

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        queries = self.config.num_query_tokens
        return [ViewTokens.unplaced(queries)] * count_images(count, queries, "queries of the Q-Former")

    def hook_target(self, model: PreTrainedModel) -> PreTrainedModel:
        language_model: Any = model.language_model  # `model.generate` calls its `generate`
        return language_model

    def format_prompt(self, question: str, images: int, system: str | None) -> str:
        _check_prompt(self, images, system)
        return f"Question: {question} Answer:"


class InstructBlip(Blip2):
    """`InstructBlipForConditionalGeneration`. Its queries attend to the question, too.

    Its processor pads the Q-Former's text on the same side as the language model's, but the Q-Former counts
    positions from the first token: `gaze.inputs` corrects that.
    """

    name = "instructblip"
    model_types = ("instructblip",)

    def fix_inputs(self, inputs: BatchFeature) -> BatchFeature:
        visible = inputs["qformer_attention_mask"]
        order = visible.argsort(dim=1, descending=True, stable=True)
        for name in ("qformer_input_ids", "qformer_attention_mask"):
            inputs[name] = inputs[name].gather(1, order)
        return inputs

    def format_prompt(self, question: str, images: int, system: str | None) -> str:
        _check_prompt(self, images, system)
        return question


def _check_prompt(family: VisionFamily, images: int, system: str | None) -> None:
    if images != 1 or system:
        raise InputError(f"a prompt of {family.name} is one image and a question, without system text")
