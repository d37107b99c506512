"""In which layer of a model GIFT reads its saliency, measured on some questions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regaze.interventions.gift.gaze_shift import RowShifts, mean_shift
from regaze.kernels import AttentionEdit, Stats
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.content_words import content_tokens
from regaze.toolkit.prompts.pairs import Images
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.wrap import Gaze


def layer_shifts(
    gaze: Gaze,
    images: Sequence[Images],
    questions: Sequence[str],
    tagger: str = "auto",
    batch_size: int = 8,
) -> Tensor:
    """[layers] fp32, total positive shift of the questions' content words, per word, mean over questions.

    The paper's rule takes the layer with the largest shift, and reports that it depends on the model alone.
    """
    meter = _ShiftMeter(tagger)
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        inputs = gaze.inputs(images[part], questions[part])
        with gaze.using(meter), torch.no_grad():
            gaze.model(**inputs)
    return torch.stack([torch.cat(meter.totals[layer]).mean() for layer in sorted(meter.totals)])


def find_saliency_layer(
    gaze: Gaze, images: Sequence[Images], questions: Sequence[str], tagger: str = "auto", batch_size: int = 8
) -> int:
    """The saliency layer of a model by the paper's rule; see `layer_shifts`."""
    return int(layer_shifts(gaze, images, questions, tagger, batch_size).argmax())


class _ShiftMeter(Callback):
    """Measures the total positive shift in every layer."""

    def __init__(self, tagger: str):
        self.tagger = tagger
        self.totals: dict[int, list[Tensor]] = {}

    def prepare(self, context: Context) -> None:
        tokenizer = context.reader.tokenizer
        content = content_tokens(context.tokens, context.input_ids, tokenizer, self.tagger)
        context.state(self)["shifts"] = RowShifts.of(content, context.tokens.mask(Role.IMAGE))

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        return context.state(self)["shifts"].request.as_edit if step == 0 else None

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        assert stats.slices is not None
        shifts: RowShifts = context.state(self)["shifts"].to(stats.slices.device)
        total = mean_shift(shifts.positive(stats.slices), shifts.counts, 1)[1]
        self.totals.setdefault(layer, []).append(total.cpu())
