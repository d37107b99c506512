"""How many image tokens are sinks in each layer, and how much attention text pays them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from regaze.kernels import RowSelection
from regaze.toolkit.analysis.answers import token_map_of
from regaze.toolkit.analysis.forward import AttentionProbe, HiddenStateProbe, run_forward, stacked
from regaze.toolkit.analysis.sink_profile import SinkProfile, sink_profile, sink_values
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.wrap import Gaze


def sink_figures(
    gaze: Gaze, images: Sequence[Image], question: str, profile: SinkProfile | None = None
) -> dict[str, Any]:
    """Per layer the sinks among a prompt's image tokens, and the share of attention they draw.

    Args:
        images: one prompt each.
        profile: sink dimensions and threshold; default: those of the model's configuration.

    Returns:
        ``layers``: per layer ``image_sinks`` (per scene), and of the attention of the rows after the image,
        over heads and rows: ``to_image_sinks``, ``to_image`` and ``to_first`` (position 0).
        ``image_sinks``: mean, least and most of the scenes in the layer with most of them.
    """
    profile = profile or sink_profile(compat.text_config(gaze.model))
    counts: list[Tensor] = []
    shares: list[Tensor] = []
    for image in images:
        inputs = gaze.inputs([image], [question])
        tokens = token_map_of(gaze, inputs)
        image_tokens = tokens.mask(Role.IMAGE)[0]
        rows = tokens.after_image()
        values, received = _ValueProbe(profile.dimensions), _ReceivedProbe(rows)
        with torch.no_grad():
            run_forward(gaze, inputs, values, received)
        attention = stacked(received.per_layer, received.chosen)[0][:, 0]  # [S, L]
        phi = stacked(values.per_layer, values.chosen)[0][: len(attention), 0]
        sinks = (phi >= profile.tau) & image_tokens
        counts.append(sinks.sum(1))
        groups = [sinks, image_tokens.expand_as(sinks), torch.arange(len(image_tokens)).expand_as(phi) == 0]
        shares.append(torch.stack([(attention * group).sum(1) for group in groups], 1))
    number, share = torch.stack(counts).float(), torch.stack(shares).mean(0)
    fullest = number[:, int(number.mean(0).argmax())]
    return {
        "scenes": len(images),
        "dimensions": list(profile.dimensions),
        "tau": profile.tau,
        "image_sinks": {
            "mean": float(fullest.mean()),
            "least": int(fullest.min()),
            "most": int(fullest.max()),
        },
        "layers": [
            {
                "layer": layer,
                "image_sinks": float(number[:, layer].mean()),
                "to_image_sinks": float(share[layer, 0]),
                "to_image": float(share[layer, 1]),
                "to_first": float(share[layer, 2]),
            }
            for layer in range(len(share))
        ],
    }


class _ValueProbe(HiddenStateProbe):
    """Sink value of every token at the input of each layer."""

    def __init__(self, dimensions: Sequence[int]):
        super().__init__()
        self.dimensions = dimensions
        self.per_layer: dict[int, tuple[Tensor]] = {}

    def measure(self, layer: int, hidden: Tensor) -> None:
        self.per_layer[layer] = (sink_values(hidden, self.dimensions),)


class _ReceivedProbe(AttentionProbe):
    """Mean attention over heads and the chosen rows that each token gets in each layer."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = RowSelection.where(rows)
        self.count = int(rows.sum())
        self.per_layer: dict[int, tuple[Tensor]] = {}

    def measure(self, layer: int, call: AttentionCall) -> None:
        self.per_layer[layer] = (call.received(self.rows).mean(1) / self.count,)
