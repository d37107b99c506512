"""Curves over tokens (preplan-and-anchor rhythm) and over hidden shares (deletion and insertion)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.reading import StrPath
from regaze.toolkit.analysis.anchors import Rhythm
from regaze.toolkit.analysis.faithfulness import Curve
from regaze.toolkit.analysis.intervals import estimate
from regaze.toolkit.plot.style import (
    BLACK,
    BLUE,
    PALETTE,
    RED,
    figure_text,
    legend,
    new_figure,
    style_and_save,
    word_ticks,
)

_MARKERS = "os^Dv*Px"


def rhythm(response: Rhythm, *, q: float = 0.2, path: StrPath | None = None) -> Figure:
    """WAAD and FAI over the tokens of a generated text, with preplanning tokens and anchors marked.

    Args:
        response: from `analysis.rhythm` or `analysis.recorded_rhythm`.
        q: fraction of the tokens to mark (see `Rhythm.preplans`; the paper trains with 0.4).
    """
    count = len(response.waad)
    figure = new_figure(max(4.6, 0.17 * count + 1.4), 4.0)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, values, marked, colour, what in (
        (upper, response.waad, response.preplans(q), BLUE, "largest change to the next token"),
        (lower, response.fai, response.anchors(q), RED, "anchor: most looked back at"),
    ):
        axes.plot(range(count), values, color=colour, linewidth=1.2)
        axes.plot(marked, values[marked], "o", color=colour, markersize=4.5, label=what)
        for place in marked.tolist():
            axes.axvline(place, color=colour, linewidth=0.5, alpha=0.35, zorder=0)
        axes.set_ylim(0, None)
        legend(axes, loc="lower right", bbox_to_anchor=(1.0, 0.98))
    upper.set_ylabel("WAAD (tokens)\nlocal heads")
    lower.set_ylabel("FAI (weight)\nglobal heads")
    lower.set_xlabel("token of the answer")
    lower.set_xlim(-0.5, count - 0.5)
    words = [text if text else str(place) for place, text in enumerate(response.text)]
    word_ticks(lower.xaxis, words, rotation=90)
    return style_and_save(figure, path)


def perturbation_curves(
    curves: Mapping[str, Mapping[str, Sequence[Curve]]], *, path: StrPath | None = None
) -> Figure:
    """Deletion and insertion curves of several maps: the mean over samples and its 95 % interval.

    Args:
        curves: kind ("deletion", "insertion") -> name of the map -> one `Curve` of a single map, [P], per
            sample, all with the same shares. A map whose name begins with "shuffled" is the control and is
            drawn as a black dashed line.

    Raises:
        BadParameterError: no curves, or curves with different shares.
    """
    if not curves or not all(names and all(names.values()) for names in curves.values()):
        raise BadParameterError("expected curves by kind and map: {'deletion': {'rollout': [Curve, ...]}}")
    figure = new_figure(3.6 * len(curves) + 0.4, 3.2)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (kind, names) in zip(panels, curves.items(), strict=True):
        for place, (name, samples) in enumerate(names.items()):
            share, mean, low, high = _mean_curve(name, samples)
            control = name.startswith("shuffled")
            colour = BLACK if control else PALETTE[place % (len(PALETTE) - 1)]
            line = "--" if control else f"-{_MARKERS[place % len(_MARKERS)]}"
            axes.plot(share, mean, line, color=colour, markersize=3.5, linewidth=1.2, label=figure_text(name))
            axes.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)
        what = {"deletion": "hidden", "insertion": "shown"}.get(kind, kind)
        axes.set_title(figure_text(kind))
        axes.set_xlabel(f"share {what}, most important first")
    panels[0].set_ylabel("log-probability of the answer (nats)")
    legend(panels[-1])
    return style_and_save(figure, path)


def _mean_curve(name: str, samples: Sequence[Curve]) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Shares, and at each of them the mean with its interval."""
    share = samples[0].share
    if any(each.score.dim() != 1 or each.share.tolist() != share.tolist() for each in samples):
        raise BadParameterError(f"the curves of {name!r} must be [P] each, with the same P shares")
    scores = np.stack([each.score.numpy() for each in samples])
    points = [estimate(column) for column in scores.T]
    mean, low, high = np.array([(point.value, point.low, point.high) for point in points]).T
    return share, mean, low, high
