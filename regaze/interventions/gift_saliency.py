"""GIFT's saliency: which image tokens a question makes the model look at, and in which layer that shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regaze.kernels import AttentionEdit, Stats
from regaze.toolkit.context import Context, Participant
from regaze.toolkit.slices import RowShifts
from regaze.toolkit.tokens import Role
from regaze.toolkit.words import content_tokens
from regaze.toolkit.wrap import Gaze, Images


def half(heads: int) -> int:
    """How many heads the method chooses: half of them, rounded down, but one at least."""
    return max(1, heads // 2)


def mean_shift(shifts: Tensor, counts: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Mean positive shift per column over the rows and over the `heads` heads with most of it.

    Args:
        shifts: [B, H, R, n] positive shifts, 0 in rows that do not count.
        counts: [B] rows that count.

    Returns:
        [B, n], and [B] the total shift of all heads, per row.
    """
    by_head = shifts.sum((2, 3))
    chosen = by_head.argsort(dim=1, descending=True, stable=True)[:, :heads]
    rows = counts.to(shifts).clamp_min(1)
    columns = shifts.sum(2).gather(1, chosen[..., None].expand(-1, -1, shifts.shape[3]))
    return columns.mean(1) / rows[:, None], by_head.sum(1) / rows


def saliency(mean: Tensor, valid: Tensor) -> Tensor:
    """The map S in [0, 1] from mean shifts [B, n], of which `valid` [B, n] exist; 0 for a flat map."""
    count = valid.sum(1, keepdim=True)
    values = torch.where(valid, mean, 0.0)
    mu = values.sum(1, keepdim=True) / count.clamp_min(1)
    variance = torch.where(valid, (values - mu) ** 2, 0.0).sum(1, keepdim=True) / (count - 1).clamp_min(1)
    reach = 3 * variance.sqrt()
    values = torch.minimum(torch.maximum(values, mu - reach), mu + reach)
    least = torch.where(valid, values, torch.inf).amin(1, keepdim=True)
    span = torch.where(valid, values, -torch.inf).amax(1, keepdim=True) - least
    return torch.where(valid & (span > 0), (values - least) / torch.where(span > 0, span, 1.0), 0.0)


def layer_shifts(
    gaze: Gaze,
    images: Sequence[Images],
    questions: Sequence[str],
    tagger: str = "auto",
    batch_size: int = 8,
) -> Tensor:
    """[layers] fp32, total positive shift of the questions' content words, per word and mean over questions.

    The paper's rule takes the layer with the largest one; it reports that this layer belongs to the model.
    """
    meter = _Meter(tagger)
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        inputs = gaze.inputs(images[part], questions[part])
        with gaze.using(meter), torch.no_grad():
            gaze.model(**inputs)
    return torch.stack([torch.cat(meter.totals[layer]).mean() for layer in sorted(meter.totals)])


def calibrate(
    gaze: Gaze, images: Sequence[Images], questions: Sequence[str], tagger: str = "auto", batch_size: int = 8
) -> int:
    """The saliency layer of a model by the paper's rule, measured on some questions; see `layer_shifts`."""
    return int(layer_shifts(gaze, images, questions, tagger, batch_size).argmax())


class _Meter(Participant):
    """Measures the total positive shift in every layer."""

    def __init__(self, tagger: str):
        self.tagger = tagger
        self.totals: dict[int, list[Tensor]] = {}

    def prepare(self, context: Context) -> None:
        content = content_tokens(context, self.tagger)
        context.state(self)["shifts"] = RowShifts(content, context.tokens.mask(Role.IMAGE))

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        return context.state(self)["shifts"].on(context.device).alone if step == 0 else None

    def observe(self, layer: int, stats: Stats, context: Context) -> None:
        shifts: RowShifts = context.state(self)["shifts"]
        assert stats.slices is not None
        total = mean_shift(shifts.positive(stats.slices), shifts.counts, 1)[1]
        self.totals.setdefault(layer, []).append(total.cpu())
