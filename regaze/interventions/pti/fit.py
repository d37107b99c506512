"""How PTI's directions are fitted on images whose objects are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from regaze.errors import InputError, UnsupportedModelError
from regaze.interventions.common.components import mean_and_components
from regaze.interventions.fitting.base import Fit, Fitted
from regaze.interventions.fitting.examples import Examples
from regaze.interventions.fitting.hidden_states import answered_inputs, prompt_of
from regaze.interventions.fitting.parts import Parts
from regaze.interventions.pti.annotated_images import AnnotatedImage, demo_images, read_images
from regaze.progress import Progress
from regaze.reading import StrPath
from regaze.toolkit.analysis.forward import run_forward
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.images import ImageLike, open_image
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.wrap import Gaze

QUESTION = "Describe this image in detail."
#: Tensors of a file, in the order in which differences are stacked.
NAMES = ("image_keys", "image_values", "text_keys", "text_values")


@dataclass(frozen=True)
class PTIFit(Fit):
    """Directions of keys and values, for the image's tokens and for the prompt's last one, in every layer.

    Of each image: its objects alone minus the rest alone, the mean over the image's tokens. Of each caption:
    its objects as the question minus the rest of the caption, at the prompt's last token, about the whole
    image. A direction is the mean of such differences plus their first unit principal component, with all
    heads of a layer together; keys are those of the cache, turned by their positions.
    """

    method: ClassVar[str] = "pti"
    least: ClassVar[int] = 3  # with two, rounding decides about the sign of the component

    pairs: PositiveInt | None = field(
        default=100, metadata={"help": "how many images are used, the first of the data; None: all"}
    )
    rank: NonNegativeInt = field(
        default=1, metadata={"help": "principal components that are added to the mean (0: the mean alone)"}
    )

    @classmethod
    def demo(cls) -> Examples:
        return demo_images()

    @classmethod
    def read(cls, path: StrPath, images: StrPath | None = None) -> Examples:
        return read_images(path, images)

    def compute(
        self, gaze: Gaze, pairs: tuple[AnnotatedImage, ...], parts: Parts, progress: Progress
    ) -> Fitted:
        for done, pair in enumerate(pairs):
            progress("images", done, len(pairs))
            parts.get_or_make(f"image_{done}", partial(_differences, gaze, pair))
        progress("images", len(pairs), len(pairs))
        x = torch.stack([parts.rows(f"image_{number}", slice(None)) for number in range(len(pairs))])
        _, kinds, layers, heads, width = x.shape
        flat = x.reshape(len(pairs), kinds * layers, heads * width)
        mean, direction = mean_and_components(flat, self.rank)
        found = direction.view(kinds, layers, heads, width).float()
        cosines = F.cosine_similarity(direction, mean, dim=-1).view(kinds, layers)
        report: dict[str, Any] = {
            f"{name}: cosine with the mean": cosines[number].tolist() for number, name in enumerate(NAMES)
        }
        tensors: dict[str, Any] = {name: ("vectors", found[number]) for number, name in enumerate(NAMES)}
        return Fitted(tensors, prompt_of(gaze, QUESTION), report)


def _differences(gaze: Gaze, pair: AnnotatedImage) -> Tensor:
    """[4, L, Hkv, D] in the order of `NAMES`."""
    described = prompt_of(gaze, QUESTION)
    objects, rest = (_measured(gaze, picture, described, image=True) for picture in pair.parts())
    whole = open_image(pair.image)
    named, unnamed = (_measured(gaze, whole, prompt_of(gaze, text), image=False) for text in pair.texts())
    return torch.cat([objects - rest, named - unnamed])


def _measured(gaze: Gaze, picture: ImageLike, prompt: str, image: bool) -> Tensor:
    """[2, L, Hkv, D] keys and values of a prompt: of its image, or of its last token."""
    probe = _KeysAndValues(image)
    run_forward(gaze, answered_inputs(gaze, picture, prompt), probe)
    return probe.stacked()


class _KeysAndValues(Callback):
    """Keeps keys and values of every layer: the mean over the image's tokens, or those of the last token."""

    def __init__(self, image: bool):
        self._image = image
        self._found: dict[int, Tensor] = {}
        self._layers = 0

    def prepare(self, context: Context) -> None:
        self._layers = context.num_layers
        self._columns = context.tokens.mask(Role.IMAGE) if self._image else context.tokens.last()
        if not self._columns.any():
            raise InputError("a prompt of the fit shows no image")

    def on_attention(self, layer: int, call: AttentionCall, context: Context) -> None:
        columns = self._columns[0].to(call.key.device)
        if call.key.shape != call.value.shape or len(call.key) != 1:
            raise UnsupportedModelError(
                f"keys [Hkv, D] = {list(call.key.shape[1::2])} and values {list(call.value.shape[1::2])} of "
                f"layer {layer} differ in size, for which PTI has no file"
            )
        pair = torch.stack([call.key[0], call.value[0]])[:, :, columns]
        self._found[layer] = pair.float().mean(2).cpu()

    def stacked(self) -> Tensor:
        """[2, L, Hkv, D]; 0 in layers without attention."""
        shapes = {found.shape for found in self._found.values()}
        if len(shapes) != 1:
            raise UnsupportedModelError(
                f"PTI needs layers with as many key heads, of one size; these have "
                f"{sorted(tuple(shape[1:]) for shape in shapes) or 'no attention'}"
            )
        none = torch.zeros(shapes.pop())
        return torch.stack([self._found.get(layer, none) for layer in range(self._layers)], 1)
