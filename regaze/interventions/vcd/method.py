"""VCD: visual contrastive decoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from regaze.errors import InputError
from regaze.interventions.contrastive import Contrastive
from regaze.interventions.vcd.noise import NUM_STEPS, add_noise
from regaze.toolkit.model.branches import with_media
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.images import PIXELS


@dataclass(frozen=True)
class VCD(Contrastive):
    """Contrast with the same prompt about the same image under diffusion noise.

    Source: Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual
    Contrastive Decoding" (arXiv:2311.16922). The noise is added to the normalised pixel values; at the
    default step 500 the image keeps 74 % of its variance and is still easy to recognise. It follows from
    `seed` and the image's shape, so that an answer depends on neither the batch nor the questions before.
    """

    name: ClassVar[str] = "vcd"
    summary: ClassVar[str] = "contrast with a noised image"
    source: ClassVar[str] = "arXiv:2311.16922"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "two rows per prompt in one forward, with the cache of both"
    release: ClassVar[str] = (
        "DAMO-NLP-SG/VCD, Apache-2.0. Until 2024-07-16 the noised branch read the clean branch's cache from "
        "the second token on, and most forks still do; here each branch has its own. Scripts differ in their "
        "parameters: beta is 0.2 in the LLaVA POPE script, alpha 0.5 with InstructBLIP, whose --cd_alpha is "
        "not passed on."
    )

    noise_step: Annotated[int, Field(ge=0, lt=NUM_STEPS)] = field(
        default=500, metadata={"help": "step of the noise schedule, 0 to 999 (noisiest)"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the noise"})

    def negative(self, context: Context) -> Branch:
        given = {name: pixels for name in PIXELS if (pixels := context.inputs.get(name)) is not None}
        if not given:
            raise InputError(
                "VCD puts noise on `pixel_values`, but the forward was given none: give the prompt an image; "
                "where the language model only gets features of it (BLIP-2, KOSMOS), VCD cannot act"
            )
        return with_media(context, **{name: self._noised(context, pixels) for name, pixels in given.items()})

    def _noised(self, context: Context, pixels: Tensor) -> Tensor:
        """A copy of what the model is given of its images, with noise."""
        grid = context.inputs.get("image_grid_thw")
        counts = None if grid is None else grid.prod(1).tolist()
        sizes = context.inputs.get("target_sizes")
        if sizes is None:
            return add_noise(pixels, self.noise_step, self.seed, counts)
        # MiniCPM-V packs the patches of all images: [1, 3, P, sum of patches * P]
        images = pixels.split((sizes.prod(1) * pixels.shape[2]).tolist(), dim=-1)
        return torch.cat([add_noise(image, self.noise_step, self.seed) for image in images], dim=-1)
