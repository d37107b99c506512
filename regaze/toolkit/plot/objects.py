"""Objects over an image: their boxes with names and scores, and their masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from regaze.errors import InputError
from regaze.reading import StrPath
from regaze.toolkit.analysis.objects import FoundObject
from regaze.toolkit.plot.style import PALETTE, TICK, figure_text, new_figure, style_and_save
from regaze.toolkit.prompts.images import ImageLike, open_image

#: Opacity of masks over the picture.
_OPACITY = 0.4
#: The longer side of the picture, in inches.
_SIDE = 4.5


def objects(found: Sequence[FoundObject], image: ImageLike, *, path: StrPath | None = None) -> Figure:
    """A picture with the boxes and masks of objects; those of one word have one colour.

    Args:
        found: from `analysis.find_objects`. image: the picture in which they were found, in that size.
        path: where to write the figure.

    Raises:
        InputError: a picture of another size.
    """
    picture = open_image(image)
    for each in found:
        if each.mask.shape != (picture.height, picture.width):
            height, width = each.mask.shape
            raise InputError(
                f"the objects were found in a picture of {width} x {height} pixels, but this one has "
                f"{picture.width} x {picture.height}"
            )
    scale = _SIDE / max(picture.size)
    figure = new_figure(max(1.5, picture.width * scale), max(1.5, picture.height * scale))
    axes = figure.subplots()
    extent = (0, picture.width, picture.height, 0)
    axes.imshow(picture, interpolation="none", extent=extent)
    words = list(dict.fromkeys(each.word for each in found))
    colours = {word: PALETTE[number % (len(PALETTE) - 1)] for number, word in enumerate(words)}
    for each in found:
        colour = colours[each.word]
        layer = np.zeros((*each.mask.shape, 4))
        layer[each.mask.numpy()] = [*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), _OPACITY]
        axes.imshow(layer, interpolation="none", extent=extent)
        left, upper, right, lower = each.box
        axes.add_patch(
            Rectangle((left, upper), right - left, lower - upper, fill=False, edgecolor=colour, linewidth=1.6)
        )
        axes.text(
            left,
            upper,
            figure_text(f"{each.word} {each.score:.2f}"),
            fontsize=TICK,
            color="white",
            verticalalignment="bottom" if upper > 0.08 * picture.height else "top",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5},
        )
    axes.set_axis_off()
    return style_and_save(figure, path)
