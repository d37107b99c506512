"""Maps over an image from recorded attention: raw, mean, largest, shifts of gaze.

They are [..., rows, columns] over the cells of an image's grid; `Geometry.to_pixels` lays them over pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from regaze.errors import BadParameterError, RecordingError, ShapeError
from regaze.toolkit.analysis.selection import number, numbers, pick, rows_of, sample_of, trace_of
from regaze.toolkit.prompts.content_words import content_words, find_tagger, tokens_of
from regaze.toolkit.prompts.slices import mean_shift, saliency
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.record import Record, Trace


def image_map(
    record: Record | Trace,
    *,
    token: int | str = 0,
    over: Literal["mean", "max", "none"] = "mean",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    sample: int = 0,
    image: int = 0,
) -> Tensor:
    """Where the row of one token looks.

    Args:
        record: recorded with slices="image" or "all".
        token: number of an answer token (the row that predicts it is shown), or a word (`Trace.row_of`).
        over: how the chosen layers and heads become one map: their "mean", the largest weight in each cell
            ("max"), or "none": every layer's and head's own, [layers, heads, rows, columns].

    Returns:
        [rows, columns] fp32 weights, not renormalised over the image.

    Raises:
        RecordingError: slices were not recorded. BadParameterError: what is asked for was not recorded.
    """
    if over not in ("mean", "max", "none"):
        raise BadParameterError(f'over must be "mean", "max" or "none", got {over!r}')
    trace = trace_of(record)
    maps = layer_maps(trace, layers, heads, sample, image)[:, :, _row(trace, token, sample)]
    if over == "none":
        return maps
    return maps.mean((0, 1)) if over == "mean" else maps.amax((0, 1))


def layer_maps(trace: Trace, layers: object, heads: object, sample: int, image: int) -> Tensor:
    """Maps of all recorded rows in the chosen layers and heads, [layers, heads, N, rows, columns]."""
    sample = sample_of(trace, sample)
    if trace.tokens is not None and trace.tokens.grids[sample]:  # image_maps has a word for what has none
        image = number("image", image, range(len(trace.tokens.grids[sample])))
    return pick(trace, trace.image_maps(sample, image), layers, heads)


def _row(trace: Trace, token: int | str, sample: int) -> int:
    if isinstance(token, str):
        return trace.row_of(token, sample)
    rows = rows_of(trace, "answer", sample)
    return int(rows[number("answer token", token, range(len(rows)))])


def gaze_shift(
    record: Record | Trace,
    *,
    words: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    heads: int | None = None,
    tagger: str = "auto",
    sample: int = 0,
    image: int = 0,
) -> Tensor:
    """Where the question's words made the model look, as far as it had not looked there before (GIFT).

    Source: Qi et al., "Capturing Gaze Shifts for Guidance" (arXiv:2510.22067). The increase of attention from
    each token to the next, max(a_i - a_(i-1), 0), is averaged over the content words' tokens, the `heads`
    heads with most of it, and the layers; clipped at 3 standard deviations and scaled to [0, 1].

    Args:
        record: recorded with rows="text" (or "all") and slices="image".
        words: which words of the question count; default: the content words that `tagger` finds, or all.
        layers: numbers; None: all that were recorded (the method reads one, see `GIFT`).
        heads: how many; default half of them.

    Returns:
        [rows, columns] fp32 in [0, 1]; 0 everywhere where nothing was shifted.

    Raises:
        RecordingError: the words' rows were not recorded.
    """
    trace = trace_of(record)
    maps = layer_maps(trace, layers, None, sample, image)
    rows, before = _pairs(trace, _question_tokens(trace, words, tagger, sample_of(trace, sample)), sample)
    shifts = (maps[:, :, rows] - maps[:, :, before]).clamp_min(0).flatten(3)  # [layers, Hq, R, n]
    count = max(1, shifts.shape[1] // 2) if heads is None else heads
    number("number of heads", count, range(1, shifts.shape[1] + 1))
    mean = mean_shift(shifts, torch.full((len(shifts),), len(rows)), count)[0].mean(0)
    return saliency(mean[None], torch.ones_like(mean[None], dtype=torch.bool))[0].view(maps.shape[3:])


def _question_tokens(trace: Trace, words: Sequence[str] | None, tagger: str, sample: int) -> list[int]:
    """Columns of the question's tokens that count."""
    if trace.tokens is None or trace.text is None:
        raise RecordingError("the record knows neither roles nor text, so not which words were asked")
    places = trace.tokens.columns(Role.QUERY, sample).tolist()
    text, offsets = "", []
    for place in places:
        piece = trace.text[sample][place]
        offsets.append((len(text), len(text) + len(piece)))
        text += piece
    found = content_words(text, find_tagger(tagger)) if words is None else []
    if words is not None:
        asked = {word.lower() for word in words}
        found = [word for word in find_tagger("function-words")(text) if word.text.lower() in asked]
        missing = asked - {word.text.lower() for word in found}
        if missing:
            raise BadParameterError(f"the words {sorted(missing)} are not in the question {text.strip()!r}")
    return [places[token] for token in tokens_of(found, offsets)] or places


def _pairs(trace: Trace, columns: list[int], sample: int) -> tuple[Tensor, Tensor]:
    """Numbers of the rows of some tokens, and of the rows of the tokens before them."""
    active = trace.row_active[sample]
    known = {int(p): row for row, p in enumerate(trace.row_position) if active[row]}
    pairs = [(known.get(column), known.get(column - 1)) for column in columns]
    held = [(row, before) for row, before in pairs if row is not None and before is not None]
    if len(held) < len(pairs) or not held:
        raise RecordingError(
            "the rows of the question and of the token before each were not all recorded; use "
            'gaze.recording(rows="all", slices="image", ...)'
        )
    rows, before = zip(*held, strict=True)
    return torch.tensor(rows), torch.tensor(before)


def cross_attention_maps(
    attentions: Sequence[Tensor],
    grid: tuple[int, int],
    *,
    prefix: int = 0,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    over: Literal["mean", "max", "none"] = "mean",
) -> Tensor:
    """Maps over an image from the cross-attention of a model that keeps its image outside the prompt.

    Args:
        attentions: per layer [B, Hq, T, prefix + rows * columns], as `output_attentions` gives them.
        grid: (rows, columns) of the image's cells. prefix: keys before them (a class token).
        layers: indices into `attentions`; heads: numbers; None: all. over: as for `image_map`.

    Returns:
        [B, T, rows, columns]; with over="none" [layers, B, heads, T, rows, columns].

    Raises:
        ShapeError: keys that do not fill the grid. BadParameterError: a layer or head that is not there.
    """
    if over not in ("mean", "max", "none"):
        raise BadParameterError(f'over must be "mean", "max" or "none", got {over!r}')
    chosen = [attentions[i] for i in numbers("layer", layers, range(len(attentions)))]
    cells = grid[0] * grid[1]
    for each in chosen:
        if each.dim() != 4 or each.shape[-1] != prefix + cells:
            raise ShapeError(
                f"cross-attention must be [B, Hq, T, {prefix} + {grid[0]} * {grid[1]}], "
                f"got {list(each.shape)}"
            )
    held = torch.stack([each[:, numbers("head", heads, range(each.shape[1]))] for each in chosen]).float()
    maps = held[..., prefix:].unflatten(-1, grid)
    if over == "none":
        return maps
    return maps.mean((0, 2)) if over == "mean" else maps.amax((0, 2))
