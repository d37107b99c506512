"""KOSMOS-2 and KOSMOS-2.5: latent queries of one image, whose ids are those of other tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel

from regaze.errors import InputError
from regaze.toolkit.prompts.families.base import Family, MediaInputs, ViewTokens, count_images
from regaze.toolkit.prompts.pixels import Patches


class Kosmos2(Family):
    """KOSMOS-2: the tokens of the image have consecutive ids, one per query.

    No text has such a run of ids: they are the first ones after `<unk>`. `generate` is the text model's; it
    counts positions of generated tokens from the left end of the padding, so that transformers itself answers
    a left-padded prompt differently from the prompt alone.
    """

    name = "kosmos-2"
    model_types: ClassVar[tuple[str, ...]] = ("kosmos-2",)
    id_step: ClassVar[int] = 1  # from the id of one query to the next

    def hook_target(self, model: PreTrainedModel) -> PreTrainedModel:
        text_model: Any = model.text_model
        return text_model

    def image_mask(self, ids: Sequence[int]) -> list[bool]:
        queries = self.config.latent_query_num
        flags = [False] * len(ids)
        for start in range(len(ids) - queries + 1):
            if all(ids[start + i] == ids[start] + self.id_step * i for i in range(queries)):
                flags[start : start + queries] = [True] * queries
        return flags

    def split_run(self, count: int, media: MediaInputs) -> list[ViewTokens]:
        queries = self.config.latent_query_num
        return [ViewTokens.unplaced(queries)] * count_images(count, queries, "latent queries")

    def format_prompt(self, question: str, images: int, system: str | None) -> str:
        if images != 1 or system:
            raise InputError(f"a prompt of {self.name} is one image and a text, without system text")
        return question


class _NumberedPatches(Patches):
    """Patches [pieces, patches, values] whose first two values are their row and column, counted from 1."""

    def patches(self, features: Mapping[str, Any]) -> Tensor:
        numbered: Tensor = features[self.name]
        return numbered[..., 2:]

    def grids(self, features: Mapping[str, Any]) -> list[tuple[int, int]]:
        return [(int(last[0]), int(last[1])) for last in features[self.name][..., :2].amax(1)]


class Kosmos2_5(Kosmos2):
    """KOSMOS-2.5: the tokens of the image are as many `<s>` as there are queries.

    Its processor marks their positions without counting the padding: `gaze.inputs` corrects that.
    """

    name = "kosmos-2.5"
    model_types = ("kosmos-2.5",)
    pixels = _NumberedPatches("flattened_patches", channels_last=True)
    id_step = 0

    def hook_target(self, model: PreTrainedModel) -> PreTrainedModel:
        return model

    def fix_inputs(self, inputs: BatchFeature) -> BatchFeature:
        marks, visible = inputs["image_embeds_position_mask"], inputs["attention_mask"]
        padding = (visible == 0).sum(1, keepdim=True)  # on the left
        length = visible.shape[1]
        inputs["image_embeds_position_mask"] = marks.gather(1, (torch.arange(length) - padding) % length)
        return inputs
