"""A score of every attention head as a map."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.reading import StrPath
from regaze.toolkit.analysis.selection import check_choice
from regaze.toolkit.plot.style import SKY, colour_scale, figure_text, new_figure, style_and_save

#: Of a label along the colour bar: few heads make a small figure, in which a long one needs several lines.
_CHARACTERS_PER_INCH = 12


def head_scores(
    scores: Tensor,
    *,
    marked: Sequence[tuple[int, int]] = (),
    label: str = "score",
    title: str | None = None,
    path: StrPath | None = None,
) -> Figure:
    """One number for every head as a map, layers downwards and heads to the right.

    Args:
        scores: [layers, Hq]. The colours range from 0 to the highest score; where some are negative, they are
            symmetric around 0.
        marked: (layer, head) pairs to frame, such as the highest.
        label: what the numbers are. title, path: as for `heatmap`.

    Raises:
        BadParameterError: scores of another shape, or a marked head that does not exist.
    """
    if scores.dim() != 2 or not scores.numel():
        raise BadParameterError(f"scores must be [layers, Hq], got {list(scores.shape)}")
    layers, heads = scores.shape
    figure = new_figure(max(0.22 * heads, 1.3) + 1.5, max(0.16 * layers, 1.3) + 0.9)
    axes = figure.add_subplot()
    values = scores.detach().float().cpu().numpy()
    mappable = axes.imshow(values, aspect="auto", interpolation="nearest", **colour_scale(values))
    for layer, head in marked:
        layer, head = check_choice("layer", layer, range(layers)), check_choice("head", head, range(heads))
        frame = Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=SKY, linewidth=1.4)
        axes.add_patch(frame)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.set_title(figure_text(title or ""))
    lines = textwrap.fill(label, max(8, int(_CHARACTERS_PER_INCH * figure.get_figheight())))
    figure.colorbar(mappable, ax=axes).set_label(lines)
    return style_and_save(figure, path)
