"""A map of GIFT's gaze shifts from a record, [rows, columns] over the cells of an image's grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regaze.errors import BadParameterError, RecordingError
from regaze.interventions.common.ranking import half_of_heads, saliency_map
from regaze.interventions.gift.gaze_shift import mean_shift
from regaze.toolkit.analysis.maps import layer_maps
from regaze.toolkit.analysis.selection import check_choice, check_sample, first_trace
from regaze.toolkit.prompts.content_words import content_words, find_tagger, tokens_of
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace


def gaze_shift_map(
    record: Record | Trace,
    *,
    words: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    heads: int | None = None,
    tagger: str = "auto",
    sample: int = 0,
    image: int = 0,
) -> Tensor:
    """Where the question's words raised the attention on an image (GIFT).

    Source: Qi et al., "Capturing Gaze Shifts for Guidance" (arXiv:2510.22067). The increase of attention from
    each token to the next, max(a_i - a_(i-1), 0), is averaged over the content words' tokens, the `heads`
    heads with most of it, and the layers; clipped at 3 standard deviations and scaled to [0, 1].

    Args:
        record: recorded with rows="text" (or "all") and slices="image".
        words: which words of the question count; default: the content words that `tagger` finds, or all.
        layers: numbers; None: all that were recorded (the method reads one, see `GIFT`).
        heads: how many; default half of them.

    Returns:
        [rows, columns] fp32 in [0, 1]; 0 everywhere if no attention was shifted.

    Raises:
        RecordingError: the words' rows were not recorded.
    """
    trace = first_trace(record)
    maps = layer_maps(trace, layers, None, sample, image)
    rows, before = _pairs(trace, _question_tokens(trace, words, tagger, check_sample(trace, sample)), sample)
    shifts = (maps[:, :, rows] - maps[:, :, before]).clamp_min(0).flatten(3)  # [layers, Hq, R, n]
    count = half_of_heads(shifts.shape[1]) if heads is None else heads
    check_choice("number of heads", count, range(1, shifts.shape[1] + 1))
    mean = mean_shift(shifts, torch.full((len(shifts),), len(rows)), count)[0].mean(0)
    return saliency_map(mean[None], torch.ones_like(mean[None], dtype=torch.bool))[0].view(maps.shape[3:])


def _question_tokens(trace: Trace, words: Sequence[str] | None, tagger: str, sample: int) -> list[int]:
    """Columns of the question's tokens that count."""
    if trace.tokens is None or trace.text is None:
        raise RecordingError(
            "the record has no token roles or no text, so the words of the question are not known"
        )
    places = trace.tokens.columns(Role.QUERY, sample).tolist()
    text, offsets = "", []
    for place in places:
        piece = trace.text[sample][place]
        offsets.append((len(text), len(text) + len(piece)))
        text += piece
    found = content_words(text, find_tagger(tagger)) if words is None else []
    if words is not None:
        chosen = {word.lower() for word in words}
        found = [word for word in find_tagger("function-words")(text) if word.text.lower() in chosen]
        missing = chosen - {word.text.lower() for word in found}
        if missing:
            raise BadParameterError(f"the words {sorted(missing)} are not in the question {text.strip()!r}")
    return [places[token] for token in tokens_of(found, offsets)] or places


def _pairs(trace: Trace, columns: list[int], sample: int) -> tuple[Tensor, Tensor]:
    """Indices of the rows of some tokens, and of the rows of the tokens before them."""
    active = trace.row_active[sample]
    row_of = {int(p): row for row, p in enumerate(trace.row_position) if active[row]}
    pairs = [(row_of.get(column), row_of.get(column - 1)) for column in columns]
    recorded = [(row, before) for row, before in pairs if row is not None and before is not None]
    if len(recorded) < len(pairs) or not recorded:
        raise RecordingError(
            "the rows of the question and of the token before each were not all recorded; use "
            'gaze.recording(rows="all", slices="image", ...)'
        )
    rows, before = zip(*recorded, strict=True)
    return torch.tensor(rows), torch.tensor(before)
