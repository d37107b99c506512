"""ILVAD: inter-layer visual attention discrepancy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from regaze.display import short_repr
from regaze.errors import BadParameterError
from regaze.interventions.base import Method, MultiPassMethod
from regaze.interventions.facts import Facts
from regaze.interventions.ilvad.evidence import evidence_map
from regaze.interventions.ilvad.looking import ILVADLooking
from regaze.interventions.ilvad.reweighing import AsReleased, Reweighing
from regaze.interventions.layer_ranges import LayerRange
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True, eq=False)
class GroundedAnswer:
    """The answer (given by `str`), and the evidence in [0, 1] of each image token, [n], in order."""

    answer: str
    evidence: Tensor

    __repr__ = short_repr

    def __str__(self) -> str:
        return self.answer


@dataclass(frozen=True)
class ILVAD(MultiPassMethod):
    """Answer twice: to see which image tokens light up between layers, then with more attention on them.

    Source: ILVAD, "Inter-Layer Visual Attention Discrepancy" (arXiv:2605.20965).

    The first `looks` tokens of a plain greedy answer give a map. In each layer an image token is bright if
    its attention, in the half of the heads that look most at the image, is above `tau` times the layer's
    mean; sinks are bright in all layers, evidence S is what becomes bright from one layer to the next (see
    `evidence_map`). The second answer is generated with it. In `layers` and rows that predict a token, in the
    half of the heads with most evidence among the image they look at, weights of image tokens are multiplied
    by exp(alpha S); in the half with most attention on the text behind the image, the weights of that text by
    its grounding: how much of the evidence the token's row saw, summed over all layers, scaled to [0, 1],
    plus `beta`. Rows keep their totals.

    The grounding of a token of the answer is that of the row that predicted it (`score_of="own"`: its own,
    from the next step on). The prompt's last token, which no row predicted, has the factor 1, and so has all
    text in the row that predicts the first token. Where nothing lights up the answer is the plain one.
    Several images are one set of tokens; the text is what comes after the last of them.

    Layers, alpha and beta are those for captions; on POPE they are 0 to 30 of 32, 5 and 1.

    With `as_released=True` (`ytx-ML/ILVAD`) the prompt's last token counts as not grounded at all, its row is
    edited by what layers up to the edited one saw, and scores are held within 3 deviations again and again.
    """

    name: ClassVar[str] = "ilvad"
    summary: ClassVar[str] = (
        "look more at image tokens that light up between layers, and at text that saw them"
    )
    source: ClassVar[str] = "arXiv:2605.20965"
    edits: ClassVar[str] = (
        "attention weights of rows that predict the answer, in a layer range, in the second of two"
    )
    cost: ClassVar[str] = "a plain answer of ten tokens, then one forward; masses of all heads in every layer"
    facts: ClassVar[Facts] = Facts(
        edits=("weights",), cost="several answers", graphs="outside", needs=("all heads", "attention rows")
    )
    release: ClassVar[str] = (
        "ytx-ML/ILVAD, no licence. NaN for flat maps and equal scores; the zero of the prompt's last token, "
        "partial sums at prefill and repeated clips (all in as_released=True); the last layer cannot be "
        "edited; in half precision future tokens with very low scores become visible; batches of one."
    )

    alpha: NonNegativeFloat = field(
        default=5.0, metadata={"help": "strength: the clearest evidence is boosted by exp(alpha)"}
    )
    beta: NonNegativeFloat = field(default=0.3, metadata={"help": "least factor of a text token's attention"})
    tau: NonNegativeFloat = field(
        default=5.0, metadata={"help": "a token is bright above so many times its layer's mean"}
    )
    looks: Annotated[int, Field(ge=2, description="a whole number of at least 2")] = field(
        default=10, metadata={"help": "tokens of the first answer"}
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last edited layer; default: 5 to 25 of 32, scaled"}
    )
    above_average: bool = field(
        default=True, metadata={"help": "evidence has more attention than the average, over layers"}
    )
    score_of: Literal["predicting", "own"] = field(
        default="predicting", metadata={"help": "the row whose grounding an answer's token has"}
    )
    shuffled: NonNegativeInt | None = field(
        default=None, metadata={"help": "seed: the evidence of other image tokens, drawn at random"}
    )
    as_released: bool = field(default=False, metadata={"help": "keep scores as the released code does"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.as_released and self.score_of == "own":
            raise BadParameterError(
                "'ilvad': the released code scores a token by the row that predicted it: leave out "
                "score_of='own' or as_released"
            )

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity or self.shuffled is not None else (replace(self, shuffled=0),)

    def answer_batch(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> list[GroundedAnswer]:
        """Two generations about the images of each question."""
        looking = ILVADLooking()
        shared = ("system", "eos_token_id", "pad_token_id")
        first: dict[str, Any] = {name: options[name] for name in shared if name in options}
        first |= {"max_new_tokens": self.looks, "do_sample": False, "num_beams": 1}
        with gaze.using(looking):
            gaze.ask(images, questions, **first, batch_size=len(questions))
        evidence = evidence_map(looking.mean, looking.valid, self.tau, self.above_average)
        if self.shuffled is not None:
            evidence = shuffle(evidence, looking.valid, self.shuffled)
        acting = (AsReleased if self.as_released else Reweighing)(self, evidence)
        with gaze.using(acting):
            answers = gaze.ask(images, questions, **{**options, "batch_size": len(questions)})
        counts = looking.valid.sum(1).tolist()
        return [
            GroundedAnswer(answer, row[:count])
            for answer, row, count in zip(answers, evidence, counts, strict=True)
        ]


def shuffle(evidence: Tensor, valid: Tensor, seed: int) -> Tensor:
    """The evidence [B, n] of each sample on other ones of its tokens."""
    shuffled = evidence.clone()
    for row, count in enumerate(valid.sum(1).tolist()):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        shuffled[row, :count] = evidence[row, order]
    return shuffled
