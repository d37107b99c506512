"""How Nullu's subspaces are fitted on pairs of captions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from regaze.interventions.fitting.base import Fit, Fitted
from regaze.interventions.fitting.caption_pairs import CaptionPair
from regaze.interventions.fitting.hidden_states import answered_inputs, prompt_of, residual_states
from regaze.interventions.fitting.parts import Parts
from regaze.progress import Progress
from regaze.toolkit.wrap import Gaze

QUESTION = "Please describe this image in detail."


@dataclass(frozen=True)
class NulluFit(Fit):
    """Of each layer the directions along which pooled states of true and invented captions differ most.

    The caption is a finished turn, with its end-of-sequence token. With E_i half the pooled residual stream
    after a layer of the true caption minus that of the invented one, the directions are the first right
    singular vectors of E, not centred.

    Pooling over "all" positions is the release's: wherever two captions differ in length, the prompt's own
    mean is in E. The report has the cosine between the two; "answer" leaves the prompt out.
    """

    method: ClassVar[str] = "nullu"

    rank: PositiveInt = field(
        default=8, metadata={"help": "directions per layer in the file; the method uses the first of them"}
    )
    pool: Literal["all", "answer", "last"] = field(
        default="all", metadata={"help": "mean over all positions or the caption's, or the last position"}
    )
    centering: bool = field(
        default=False, metadata={"help": "first remove the main direction of the true captions' states"}
    )

    def compute(self, gaze: Gaze, pairs: tuple[CaptionPair, ...], parts: Parts, progress: Progress) -> Fitted:
        for done, pair in enumerate(pairs):
            progress("captions", done, len(pairs))
            parts.get_or_make(f"pair_{done}", partial(self._states, gaze, pair))
        progress("captions", len(pairs), len(pairs))
        true, invented, prompt = (
            torch.stack([parts.rows(f"pair_{i}", slice(number, number + 1))[0] for i in range(len(pairs))])
            for number in range(3)
        )
        bases, cosines = [], []
        for layer in range(true.shape[1]):
            difference = edit_features(true[:, layer], invented[:, layer], self.centering)
            basis = first_directions(difference, self.rank)
            mean = prompt[:, layer].double().mean(0)
            cosines.append(float((basis @ (mean / mean.norm().clamp_min(1e-30))).abs().max()))
            bases.append(basis)
        report = {"largest cosine with the prompt's mean": cosines}
        question = pairs[0].question or QUESTION
        return Fitted({"basis": ("basis", torch.stack(bases).float())}, prompt_of(gaze, question), report)

    def _states(self, gaze: Gaze, pair: CaptionPair) -> Tensor:
        """[3, L, D] pooled states leaving each layer: true, invented, and the mean over the prompt alone."""
        prompt = prompt_of(gaze, pair.question or QUESTION)
        start = answered_inputs(gaze, pair.image, prompt)["input_ids"].shape[1]
        space = "" if prompt[-1:].isspace() else " "
        end = getattr(gaze.reader.tokenizer, "eos_token", None) or ""
        true, invented = (
            residual_states(
                gaze,
                answered_inputs(gaze, pair.image, f"{prompt}{space}{text}{end}"),
                partial(self._pool, start),
            )
            for text in (pair.true, pair.invented)
        )
        return torch.stack([true[1:, 0], invented[1:, 0], true[1:, 1]])

    def _pool(self, start: int, hidden: Tensor) -> Tensor:
        """[2, D] of hidden states [T, D]: pooled as chosen, and the mean over the prompt."""
        rows = {"all": hidden, "answer": hidden[start:], "last": hidden[-1:]}[self.pool]
        return torch.stack([rows.mean(0), hidden[:start].mean(0)])


def edit_features(true: Tensor, invented: Tensor, centering: bool = False) -> Tensor:
    """[N, D] fp64, half the difference of pooled states [N, D]."""
    difference = (true.double() - invented.double()) / 2
    if centering:
        main = first_directions(true, 1)
        difference = difference - difference @ main.mT @ main
    return difference


def first_directions(x: Tensor, rank: int) -> Tensor:
    """The first right singular vectors of x [N, D], not centred: [rank, D] fp64; rows of 0 beyond its rank.

    From the Gram matrix of the smaller side, which is what a fit on thousands of pairs affords.
    """
    x = x.double()
    wide = x.shape[0] <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)  # ascending
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    found = int((values > 1e-12 * values[:1].clamp_min(1e-300)).sum())
    directions = x.mT @ vectors[:, :found] if wide else vectors[:, :found]
    basis = x.new_zeros(rank, x.shape[1])
    basis[:found] = torch.linalg.qr(directions).Q.mT
    return basis
