"""AGLA: assembly of global and local attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, NonNegativeFloat
from scipy import ndimage
from torch import Tensor

from regaze.errors import InputError, UnsupportedModelError
from regaze.interventions.agla.black_out import Mask, black_out
from regaze.interventions.agla.itm_gradcam import Relevance, blip_relevance
from regaze.interventions.base import Intervention, Method
from regaze.interventions.contrastive import has_image, logits_to_constrain, rows_with_image
from regaze.interventions.controls import Sharpen
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.branches import with_media
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.pixels import PIXELS, seen_images
from regaze.toolkit.prompts.token_map import Role

#: BLIP fine-tuned for retrieval on COCO, as in the release.
BLIP = "Salesforce/blip-itm-large-coco"
#: Side of the map that is thresholded, and how far it is blurred.
SIDE, _SIGMA = 384, 0.02 * 384


@dataclass(frozen=True)
class AGLA(Intervention):
    """Add the logits of a branch that sees only the part of the image that the question is about.

    Source: An et al., "Mitigating Object Hallucinations in Large Vision-Language Models with Assembly of
    Global and Local Attention" (arXiv:2406.12718).

    `relevance` gives a map over the image and the similarity s of image and question. The map is enlarged to
    384 x 384 and blurred, and the highest share 1 - s/2 of its pixels stays visible: the better the match,
    the more of the image turns black. `alpha` times the logits of the masked image are added to the user's,
    and tokens less likely than `beta` times the most likely one are excluded, by the user's logits alone.

    The images are those that the model sees, read back from the pixel values, and masked there. Image and
    masked image therefore show the same part of a photo; the release masks the whole image, squashed. Each
    image is masked separately; a prompt without images is left unchanged. alpha = 2 also sharpens the
    distribution about threefold: compare it with a plain model at a third of the temperature.

    With `as_released=True` (`Lackel/AGLA`) the branch reads the user's key-value cache from the second token
    on, so that its logits are the user's and the sum is (1 + alpha) times the user's logits.
    """

    name: ClassVar[str] = "agla"
    summary: ClassVar[str] = "add the logits of a branch that sees only what the question is about"
    source: ClassVar[str] = "arXiv:2406.12718"
    edits: ClassVar[str] = "the logits of every step, before temperature and truncation"
    cost: ClassVar[str] = (
        "2 forwards per token in one stack, with 2 caches; BLIP forward and backward per question and image"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("logits",), cost="two rows", needs=("relevance model", "second context")
    )
    release: ClassVar[str] = (
        "No licence. From the second token on the branch reads the main branch's cache, so that the result "
        "is a sharper plain model (as_released); takes one sample at a time, fails on questions of more "
        "than 35 tokens and gives NaN for a flat map. Here all of these work; a flat map masks nothing."
    )

    alpha: NonNegativeFloat = field(default=2.0, metadata={"help": "weight of the masked image's logits"})
    beta: Fraction = field(
        default=0.5, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )
    relevance: Annotated[str | Relevance, Field(description="a model's name or a function")] = field(
        default=BLIP,
        metadata={"help": "BLIP retrieval model, or a function (image, text) -> (map, similarity)"},
    )
    not_asked: Sequence[str] = field(
        default=(
            "Please answer this question with one word.",
            "Answer the question using a single word or phrase.",
        ),
        metadata={"help": "endings of a question that instruct the model and are ignored"},
    )
    as_released: bool = field(
        default=False,
        metadata={"help": "share the cache from the second token on, as the released code does"},
    )

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0 and self.beta == 0.0

    def controls(self) -> Sequence[Method]:
        return (Sharpen(self.alpha, self.beta),) if self.alpha else ()

    # The branch ---------------------------------------------------------------------------------------

    @property
    def branch(self) -> str:
        """Name of the branch; its content depends on these parameters alone."""
        relevance = self.relevance if isinstance(self.relevance, str) else f"function {id(self.relevance)}"
        return f"agla: {relevance}, {self.not_asked}"

    def branches(self, context: Context) -> Mapping[str, Branch]:
        if self.is_identity or not has_image(context).any():
            return {}
        context.state(self)["where"] = rows_with_image(context)
        if self.alpha == 0.0:  # the plausibility constraint alone needs no branch
            return {}
        return {self.branch: with_media(context, pixel_values=self.masked(context))}

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state = context.state(self)
        if "where" not in state:
            return None
        logits, where, others = context.logits(), state["where"], []
        if self.alpha > 0.0:
            weight = self.alpha if where is None else self.alpha * where.to(logits.device)
            shared = self.as_released and context.step > 0
            others = [(weight, logits if shared else context.logits(self.branch))]
        return LogitsCombination(
            others=others, plausibility=self.beta, plausibility_logits=logits_to_constrain(logits, where)
        )

    def masked(self, context: Context) -> Tensor:
        """The prompts' pixel values, black where the image is not relevant to the question."""
        context.prompt_ids()  # before BLIP is loaded
        relevance = self.relevance
        if isinstance(relevance, str):
            relevance = blip_relevance(relevance, str(context.device))
        if any(context.inputs.get(name) is not None for name in PIXELS if name != "pixel_values"):
            raise UnsupportedModelError(
                "AGLA masks `pixel_values`, but this model is given other pixels, too"
            )
        processor, layout = context.reader.processor.image_processor, context.reader.family.pixels
        images, questions = seen_images(layout, processor, context.inputs), self._questions(context)
        if len(images) != len(questions):
            raise InputError(f"the prompts have {len(questions)} images, but the pixel values {len(images)}")
        masks: dict[tuple[bytes, str], Mask] = {}  # beams repeat their prompt
        keys = [(image.tobytes(), question) for image, question in zip(images, questions, strict=True)]
        for key, image in zip(keys, images, strict=True):
            if key not in masks:
                map_, similarity = relevance(image, key[1])
                mask = keep_mask(smooth_map(map_), float(similarity))
                fitted = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
                masks[key] = np.asarray(fitted)
        return black_out(processor, context.inputs, [masks[key] for key in keys])

    def _questions(self, context: Context) -> list[str]:
        """The question about each image of the batch."""
        tokens, found = context.tokens, []
        for sample, ids in enumerate(context.prompt_ids().cpu()):
            count, question = int(tokens.view[sample].max()) + 1, tokens.columns(Role.QUERY, sample)
            if len({view.image for view in tokens.views[sample]}) < len(tokens.views[sample]):
                raise UnsupportedModelError("AGLA masks whole images, but this model is given tiles of one")
            if count and not len(question):
                raise InputError(f"prompt {sample} has an image, but none of its tokens has the role QUERY")
            text = context.reader.tokenizer.decode(ids[question]).strip()
            for ending in self.not_asked:
                text = text.removesuffix(ending).strip()
            found += [text] * count
        return found


def smooth_map(relevance: Any) -> NDArray[np.float64]:
    """A relevance map [rows, columns] as 384 x 384 values in [0, 1]; a flat map becomes 0 everywhere."""
    values = torch.as_tensor(relevance).detach().double().cpu().numpy()
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"a relevance map is [rows, columns] of finite numbers, got {values.shape}")
    zoom = [SIDE / length for length in values.shape]
    large = ndimage.zoom(_min_max(values), zoom, order=3, mode="grid-constant", grid_mode=True)
    return _min_max(ndimage.gaussian_filter(large.clip(0, 1), _SIGMA))


def keep_mask(values: NDArray[Any], similarity: float) -> Mask:
    """The pixels of a map [H, W] that stay visible: the highest share 1 - similarity / 2, ties included."""
    keep = min(max(1 - similarity / 2, 0.0), 1 - 1e-5)
    threshold = np.sort(values, axis=None)[::-1][int(values.size * keep)]
    return values >= threshold


def _min_max(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values = values - values.min()
    return values / values.max() if values.max() > 0 else values
