"""Figures for papers: heatmaps over images, attention by role, scores of heads and layers, tests of maps.

Every function returns a matplotlib Figure (no pyplot state, nothing is shown) and writes it when given a
`path` (.png, .pdf, .svg). All colours work for colour-blind readers: "inferno" for amounts; for differences
blue is lost and orange is gained, as on the viewer's page; the Okabe-Ito palette for categories.
docs/gallery.md shows every figure with the code that draws it.
"""

from regaze.toolkit.plot.curves import perturbation_curves, rhythm
from regaze.toolkit.plot.estimates import forest_plot, pointing_game
from regaze.toolkit.plot.heads import head_scores
from regaze.toolkit.plot.lenses import lens_patches, lens_table
from regaze.toolkit.plot.maps import answer_map, heatmap, maps, sink_map, token_layer_grid
from regaze.toolkit.plot.objects import objects
from regaze.toolkit.plot.roles import role_flow, role_masses
from regaze.toolkit.plot.style import PALETTE, ROLE_COLOURS, style_and_save
from regaze.toolkit.plot.tokens import cross_attention, token_matrix

__all__ = [
    "PALETTE",
    "ROLE_COLOURS",
    "answer_map",
    "cross_attention",
    "forest_plot",
    "head_scores",
    "heatmap",
    "lens_patches",
    "lens_table",
    "maps",
    "objects",
    "perturbation_curves",
    "pointing_game",
    "rhythm",
    "role_flow",
    "role_masses",
    "sink_map",
    "style_and_save",
    "token_layer_grid",
    "token_matrix",
]
