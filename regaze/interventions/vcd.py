"""VCD: visual contrastive decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from regaze.errors import BadParameterError, InputError, ShapeError
from regaze.interventions.contrastive import Contrastive
from regaze.interventions.facts import Facts
from regaze.toolkit.model.branches import with_media
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.pixels import PIXELS, padded_sizes

#: Steps of the noise schedule; step 999 is the noisiest.
NUM_STEPS = 1000
_BETA_FIRST, _BETA_LAST = 1e-5, 0.005


@dataclass(frozen=True)
class VCD(Contrastive):
    """Contrast with the same prompt about the same image under diffusion noise.

    Source: Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual
    Contrastive Decoding" (arXiv:2311.16922). The noise is added to the normalised pixel values; at the
    default step 500 the image keeps 74 % of its variance and is easy to recognise. The noise depends on
    `seed` and the image's shape alone, so that an answer depends on neither the batch nor earlier questions.
    """

    name: ClassVar[str] = "vcd"
    summary: ClassVar[str] = "contrast with a noised image"
    source: ClassVar[str] = "arXiv:2311.16922"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "two rows per prompt in one forward, with the cache of both"
    facts: ClassVar[Facts] = Facts(edits=("logits",), cost="two rows", needs=("second context",))
    release: ClassVar[str] = (
        "DAMO-NLP-SG/VCD, Apache-2.0. Until 2024-07-16 the noised branch read the clean branch's cache from "
        "the second token on, and most forks still do; here each branch has its own. Scripts differ in their "
        "parameters: beta is 0.2 in the LLaVA POPE script, alpha 0.5 with InstructBLIP, whose --cd_alpha is "
        "ignored."
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
        return with_media(context, **{name: self._noised(context, name) for name in given})

    def _noised(self, context: Context, name: str) -> Tensor:
        """A copy of the model's pixel values with noise."""
        pixels: Tensor = context.inputs[name]
        if (own := padded_sizes(context.inputs, name)) is not None:
            return add_noise_within(pixels, self.noise_step, own, self.seed)
        grid = context.inputs.get("image_grid_thw")
        counts = None if grid is None else grid.prod(1).tolist()
        sizes = context.inputs.get("target_sizes")
        if sizes is None:
            return add_noise(pixels, self.noise_step, self.seed, counts)
        # MiniCPM-V packs the patches of all images: [1, 3, P, sum of patches * P]
        images = pixels.split((sizes.prod(1) * pixels.shape[2]).tolist(), dim=-1)
        return torch.cat([add_noise(image, self.noise_step, self.seed) for image in images], dim=-1)


# Diffusion noise on pixel values; the schedule is that of the release (`DAMO-NLP-SG/VCD`).


def signal_share() -> Tensor:
    """alpha-bar of every step, [1000] float64: the share of the image's variance that is left.

    beta_t = sigmoid(u_t) (0.005 - 1e-5) + 1e-5 with u_t from -6 to 6; alpha-bar_t is the product of
    1 - beta up to t.
    """
    u = torch.linspace(-6, 6, NUM_STEPS, dtype=torch.float64)
    betas = torch.sigmoid(u) * (_BETA_LAST - _BETA_FIRST) + _BETA_FIRST
    return torch.cumprod(1 - betas, 0)


def diffuse(pixels: Tensor, noise: Tensor, step: int) -> Tensor:
    """sqrt(alpha-bar) x + sqrt(1 - alpha-bar) eps in fp32, returned in the dtype of `pixels`.

    Args:
        pixels, noise: normalised pixel values and standard normal numbers of the same shape.
        step: 0-based; 500 leaves 74 % of the image's variance, 999 leaves 8 %.

    Raises:
        BadParameterError: no such step. ShapeError: shapes that differ.
    """
    if not 0 <= step < NUM_STEPS:
        raise BadParameterError(f"the noise step must be in 0..{NUM_STEPS - 1}, got {step}")
    if pixels.shape != noise.shape:
        raise ShapeError(f"noise {list(noise.shape)} does not fit pixel values {list(pixels.shape)}")
    share = signal_share()[step]
    return (float(share.sqrt()) * pixels.float() + float((1 - share).sqrt()) * noise).to(pixels.dtype)


def add_noise(pixels: Tensor, step: int, seed: int = 0, counts: Sequence[int] | None = None) -> Tensor:
    """Noised copy of a batch of pixel values.

    The noise of an image depends on the seed and the image's shape alone, so that no answer depends on the
    batch; images of one shape get the same noise. A tile of zeros stays zero: it pads a batch, and some
    models recognise it by that.

    Args:
        pixels: [N, C, H, W], [N, tiles, C, H, W], or flattened patches [sum of counts, D].
        step: as for `diffuse`.
        seed: of the noise.
        counts: rows of `pixels` that belong to each image; None: one each.
    """
    sizes = [1] * len(pixels) if counts is None else [int(count) for count in counts]
    if sum(sizes) != len(pixels):
        raise ShapeError(f"images of {sizes} rows do not make the {len(pixels)} rows of the pixel values")
    images = pixels.split(sizes)
    noise = torch.cat([_gaussian(image.shape, seed) for image in images]) if sizes else pixels
    noised = diffuse(pixels, noise.to(pixels.device), step)
    if pixels.dim() < 4:
        return noised
    return noised.where(pixels.flatten(-3).any(-1).bool()[..., None, None, None], pixels)


def add_noise_within(pixels: Tensor, step: int, sizes: Sequence[tuple[int, int]], seed: int = 0) -> Tensor:
    """As `add_noise`, of [N, (tiles,) C, H, W] where a batch has padded tiles; padding stays as it is.

    Args:
        sizes: (height, width) of each tile, see `prompts.pixels.padded_sizes`.
    """
    noised, own = pixels.clone(), iter(sizes)
    for image in noised.view(len(pixels), -1, *pixels.shape[-3:]):
        generator = torch.Generator().manual_seed(seed)
        for tile in image:
            height, width = next(own)
            seen = tile[:, :height, :width]
            noise = torch.randn(seen.shape, generator=generator)
            seen.copy_(diffuse(seen, noise.to(seen.device), step))
    return noised


def _gaussian(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal numbers, drawn on the CPU tile by tile, so that padding tiles change nothing."""
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.Size(shape[:-3]).numel()
    drawn = [torch.randn(tuple(shape[-3:]), generator=generator) for _ in range(tiles)]
    return torch.stack(drawn).reshape(tuple(shape)) if drawn else torch.empty(tuple(shape))
