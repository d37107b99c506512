"""How ICT's shifts of heads are fitted on yes/no questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from PIL import ImageFilter
from PIL.Image import Image
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from regaze.errors import UnsupportedModelError
from regaze.interventions.fitting.base import Fit, Fitted
from regaze.interventions.fitting.examples import Examples
from regaze.interventions.fitting.hidden_states import answered_inputs, prompt_of
from regaze.interventions.fitting.parts import Parts
from regaze.interventions.fitting.yes_no_questions import Question, demo_questions, read_questions
from regaze.interventions.ict.probe import shifts_and_scores
from regaze.progress import Progress
from regaze.reading import StrPath
from regaze.toolkit.analysis.forward import run_forward
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.images import open_image
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True)
class ICTFit(Fit):
    """Of each head the shift from untrusted to trusted inputs, and how well it tells them apart.

    Activations are those of the last token of question and right answer. Trusted is the image itself. At the
    image level, untrusted is the blurred image. At the object level it is the image with the object of the
    question blacked out ("object_image" in the data; blurred for an object that is not there); without such
    images there is no object level.

    The release (as_released=True) ends every untrusted sequence of the image level in "yes", and blurs only
    where that is right, so that half of its shift is the difference between "no" and "yes".
    """

    method: ClassVar[str] = "ict"
    least: ClassVar[int] = 4

    pairs: PositiveInt | None = field(
        default=1500, metadata={"help": "how many questions are used, the first of the data; None: all"}
    )
    blocks: PositiveInt | None = field(
        default=None,
        metadata={
            "help": "cut the attention's output into so many blocks, as the release does (128 of a 7B model, "
            "40 of a 13B model), instead of the heads before its output projection"
        },
    )
    blur: PositiveFloat = field(default=5.0, metadata={"help": "radius of the Gaussian blur, in pixels"})
    seed: NonNegativeInt = field(default=0, metadata={"help": "of the order in which the probes' folds are"})
    as_released: bool = field(
        default=False, metadata={"help": 'the answer "yes" to all untrusted questions of the image level'}
    )

    @classmethod
    def demo(cls) -> Examples:
        return demo_questions()

    @classmethod
    def read(cls, path: StrPath, images: StrPath | None = None) -> Examples:
        return read_questions(path, images)

    def compute(self, gaze: Gaze, pairs: tuple[Question, ...], parts: Parts, progress: Progress) -> Fitted:
        with_objects = all(q.label == "no" or q.object_image is not None for q in pairs)
        for done, question in enumerate(pairs):
            progress("questions", done, len(pairs))
            parts.get_or_make(f"question_{done}", partial(self._activations, gaze, question, with_objects))
        progress("questions", len(pairs), len(pairs))
        kinds = [
            torch.stack([parts.rows(f"question_{i}", slice(k, k + 1))[0] for i in range(len(pairs))])
            for k in range(2 + with_objects)
        ]
        order = torch.randperm(2 * len(pairs), generator=torch.Generator().manual_seed(self.seed))
        tensors: dict[str, Any] = {}
        report: dict[str, Any] = {}
        for name, untrusted in zip(("image", "object"), kinds[1:], strict=False):
            layers = range(untrusted.shape[1])
            found = [shifts_and_scores(kinds[0][:, n], untrusted[:, n], order) for n in layers]
            shift, score = (torch.stack(part).float() for part in zip(*found, strict=True))
            tensors[name], tensors[f"{name}_score"] = ("vectors", shift), ("scores", score)
            report[f"best accuracy, {name}"] = score.amax(1).tolist()
        return Fitted(tensors, prompt_of(gaze, pairs[0].text), report)

    def _activations(self, gaze: Gaze, question: Question, with_objects: bool) -> Tensor:
        """[2 or 3, L, H, d] of the trusted input and the untrusted ones, at the answer's last token."""
        clean, label = open_image(question.image), question.label
        blurred = clean.filter(ImageFilter.GaussianBlur(self.blur))
        inputs = [(clean, label)]
        if self.as_released:
            inputs.append((blurred if label == "yes" else clean, "yes"))
        else:
            inputs.append((blurred, label))
        if with_objects:
            lacking = blurred if question.object_image is None else open_image(question.object_image)
            inputs.append((lacking, label))
        return torch.stack([self._heads(gaze, question, image, answer) for image, answer in inputs])

    def _heads(self, gaze: Gaze, question: Question, image: Image, answer: str) -> Tensor:
        """[L, H, d] activations at the last token; 0 for layers without attention."""
        prompt = prompt_of(gaze, question.text)
        space = "" if prompt[-1:].isspace() else " "
        seen = _Heads() if self.blocks is None else _Blocks(self.blocks)
        run_forward(gaze, answered_inputs(gaze, image, f"{prompt}{space}{answer}"), seen)
        shapes = {heads.shape for heads in seen.last.values()}
        if len(shapes) != 1:
            raise UnsupportedModelError(
                f"{type(gaze.model).__name__} has layers with different heads {sorted(map(tuple, shapes))}"
            )
        empty = torch.zeros(shapes.pop())
        return torch.stack([seen.last.get(layer, empty) for layer in range(seen.layers)])


class _Heads(Callback):
    """Keeps the output of each head at the last token, before the output projection."""

    def __init__(self) -> None:
        self.last: dict[int, Tensor] = {}  # layer -> [H, d]
        self.layers = 0

    def prepare(self, context: Context) -> None:
        self.layers = context.num_layers

    def on_attention(self, layer: int, call: AttentionCall, context: Context) -> None:
        self.last[layer] = call.output[0, -1].float().cpu()


class _Blocks(Callback):
    """Keeps blocks of the output of each layer's attention at the last token."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.last: dict[int, Tensor] = {}
        self.layers = 0

    def prepare(self, context: Context) -> None:
        self.layers = context.num_layers

    def edit_attention_output(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        if hidden.shape[-1] % self._count:
            raise UnsupportedModelError(
                f"{self._count} blocks do not divide the width {hidden.shape[-1]} of the attention's output"
            )
        self.last[layer] = hidden[0, -1].float().cpu().view(self._count, -1)
        return hidden
