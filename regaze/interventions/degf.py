"""DeGF: self-correcting decoding with generative feedback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from PIL import Image
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from regaze.errors import BadParameterError, InputError
from regaze.interventions.base import Method, MultiPassMethod
from regaze.interventions.contrastive import gated_logits
from regaze.interventions.controls import Sharpen
from regaze.interventions.divergences import jensen_shannon, reversed_jensen_shannon
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.branches import with_media
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.pixels import PIXELS
from regaze.toolkit.wrap import Gaze

#: Draws a picture of each text.
Generator = Callable[[list[str]], Sequence[Image.Image]]
_BRANCH = "degf: the drawn picture"


@dataclass(frozen=True, eq=False)
class FeedbackAnswer:
    """The answer (given by `str`), the description before it, and the picture drawn of that."""

    answer: str
    description: str
    picture: Image.Image

    def __str__(self) -> str:
        return self.answer


@dataclass(frozen=True)
class DeGF(MultiPassMethod):
    """Draw what the model says about an image, and answer by both: added where they agree, else contrasted.

    Source: Zhang et al., "Self-Correcting Decoding with Generative Feedback for Mitigating Hallucinations in
    Large Vision-Language Models" (arXiv:2502.06130). The model first describes the image, greedily, and
    `generator` draws a picture of the description. The question is then answered with a branch about the
    picture. Where the distributions of both are alike, with a Jensen-Shannon divergence below `gamma`, scores
    = l + alpha_pos n; elsewhere (1 + alpha_neg) l - alpha_neg n. Tokens less likely than `beta` times the
    likeliest are excluded, by l. Every sample and token has its own gate.

    `generator` is yours, a function of a list of texts that returns PIL images; the release's is Stable
    Diffusion 1.5 with 50 steps. The picture takes the size of the image. For a caption, `details=""` asks for
    the description by the question itself. The release's beta is 0.1 for captions, 0.25 on POPE, 0.5 on MME.

    With `as_released=True` (`zhangce01/DeGF`) the divergence has the arguments of its terms exchanged,
    KL(m || p) for KL(p || m), which is larger where one side is sure; its gamma was chosen with that.
    """

    name: ClassVar[str] = "degf"
    summary: ClassVar[str] = "answer by the image and by a picture drawn of its description"
    source: ClassVar[str] = "arXiv:2502.06130"
    edits: ClassVar[str] = "logits at every step of the second of two generations"
    cost: ClassVar[str] = "a description, a drawn picture, then two rows per prompt in one forward"
    facts: ClassVar[Facts] = Facts(
        edits=("logits",), cost="several answers", graphs="outside", needs=("generator", "second context")
    )
    release: ClassVar[str] = (
        "zhangce01/DeGF, MIT. The divergence has its arguments exchanged (as_released=True) and is averaged "
        "over the batch, so that one gate decides for all; its patched `sample` returns a tuple. Here every "
        "sample has its own gate."
    )

    generator: Annotated[Generator | None, Field(description="a function (texts) -> PIL images, or None")] = (
        field(default=None, metadata={"help": "(texts) -> PIL images, a picture of each text; needed"})
    )
    gamma: NonNegativeFloat = field(
        default=0.1, metadata={"help": "divergence below which both agree, in nats (0: never)"}
    )
    alpha_pos: NonNegativeFloat = field(
        default=3.0, metadata={"help": "weight of the picture's logits where both agree"}
    )
    alpha_neg: NonNegativeFloat = field(
        default=1.0, metadata={"help": "strength of the contrast where they do not"}
    )
    beta: Fraction = field(
        default=0.1, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )
    details: str = field(
        default="Briefly describe relevant details.",
        metadata={"help": "what the description's question ends in; empty: the question alone"},
    )
    description_tokens: PositiveInt = field(default=1024, metadata={"help": "most tokens of the description"})
    as_released: bool = field(default=False, metadata={"help": "the released code's divergence"})

    @property
    def is_identity(self) -> bool:
        return self.alpha_pos == self.alpha_neg == self.beta == 0.0

    @property
    def lacks(self) -> str:
        return "" if self.generator else "give `generator`, a function of texts that draws a picture of each"

    def controls(self) -> Sequence[Method]:
        return (Sharpen(self.alpha_pos, self.beta),) if self.alpha_pos and self.gamma else ()

    def answer_batch(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> list[FeedbackAnswer]:
        """Two generations about the image of each question, and a drawn picture.

        Raises:
            BadParameterError: no generator. InputError: a question without an image or with several; other
            than a picture for each text.
        """
        if self.lacks:
            raise BadParameterError(f"'degf': {self.lacks}")
        if any(len(entry) != 1 for entry in images):
            raise InputError("DeGF draws one picture per question; ask about each image by itself")
        asked = [f"{question} {self.details}".strip() for question in questions]
        system = options.get("system")
        descriptions = gaze.ask(
            images,
            asked,
            system=system,
            batch_size=len(questions),
            max_new_tokens=self.description_tokens,
            do_sample=False,
        )
        pictures = self._drawn(descriptions, [entry[0].size for entry in images])
        feedback = _Feedback(
            self, gaze, [[picture] for picture in pictures], questions, options.get("system")
        )
        with gaze.using(feedback):
            answers = gaze.ask(images, questions, **{**options, "batch_size": len(questions)})
        return [FeedbackAnswer(*each) for each in zip(answers, descriptions, pictures, strict=True)]

    def _drawn(self, texts: list[str], sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
        assert self.generator is not None
        pictures = list(self.generator(texts))
        if len(pictures) != len(texts) or not all(isinstance(each, Image.Image) for each in pictures):
            raise InputError(
                f"DeGF's generator must give a PIL image for each of {len(texts)} texts, it gave "
                f"{[type(each).__name__ for each in pictures]}"
            )
        return [p.convert("RGB").resize(size) for p, size in zip(pictures, sizes, strict=True)]

    def combined(self, logits: Tensor, other: Tensor) -> LogitsCombination:
        """The user's logits [B, T, V] and those about the picture, by the gate of each token."""
        divergence = reversed_jensen_shannon if self.as_released else jensen_shannon
        apart = divergence(logits.float().log_softmax(-1), other.float().log_softmax(-1))[..., None]
        return gated_logits(logits, other, apart < self.gamma, (self.alpha_pos, self.alpha_neg), self.beta)


class _Feedback(Callback):
    """The branch about the drawn pictures of one batch of questions, and the gate."""

    def __init__(
        self,
        method: DeGF,
        gaze: Gaze,
        pictures: Sequence[list[Image.Image]],
        questions: Sequence[str],
        system: str | None,
    ):
        self._method, self._gaze = method, gaze
        self._pictures, self._questions, self._system = pictures, questions, system

    def branches(self, context: Context) -> Mapping[str, Branch]:
        copies = range(context.user_batch // len(self._questions))  # beams repeat their prompt
        pictures = [entry for entry in self._pictures for _ in copies]
        questions = [question for question in self._questions for _ in copies]
        made = self._gaze.cpu_inputs(pictures, questions, self._system)
        given = {name: context.inputs[name] for name in PIXELS if context.inputs.get(name) is not None}
        if not given:
            raise InputError("DeGF shows another picture in `pixel_values`, but the forward was given none")
        return {_BRANCH: with_media(context, **{name: made[name].to(given[name]) for name in given})}

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        return self._method.combined(context.logits(), context.logits(_BRANCH))
