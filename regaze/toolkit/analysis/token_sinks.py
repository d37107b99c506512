"""Attention sinks among a prompt's tokens, found from their hidden states, and whether they are stable.

`regaze.toolkit.analysis.sink_profile` knows or finds the sink dimensions of a base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from regaze.display import Summary, Tabular, long_table, short_repr
from regaze.errors import InputError
from regaze.toolkit.analysis.answers import token_map_of
from regaze.toolkit.analysis.forward import HiddenStateProbe, run_forward, stacked
from regaze.toolkit.analysis.sink_profile import SinkProfile, sink_profile, sink_values
from regaze.toolkit.model import compat
from regaze.toolkit.prompts.token_map import Role, TokenMap
from regaze.toolkit.wrap import Gaze


@dataclass(frozen=True, eq=False)
class SinkTokens(Tabular):
    """Sink values of the tokens in each layer.

    Attributes:
        layers: [S] numbers of the layers; the values are those of each layer's input.
        values: [S, B, L] fp32 sink value phi of each token; 0 for padding.
        tau: threshold from which a token is a sink.
        tokens: roles of the prompt.
    """

    layers: tuple[int, ...]
    values: Tensor
    tau: float
    tokens: TokenMap

    __repr__ = short_repr

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per layer, sample and token that is not padding."""
        real = (~self.tokens.mask(Role.PAD)).expand_as(self.values)
        layer, sample, column = real.nonzero(as_tuple=True)
        roles = self.tokens.roles[sample, column].tolist()
        return {
            "layer": [self.layers[each] for each in layer.tolist()],
            "sample": sample.tolist(),
            "column": column.tolist(),
            "role": [Role(role).name.lower() for role in roles],
            "value": self.values[real].tolist(),
            "sink": self.mask()[real].tolist(),
        }

    def _summary(self) -> Summary:
        """The number of sinks of each role in each layer, over all samples."""
        counts = {role.name.lower(): self.mask(role).sum((1, 2)).tolist() for role in Role}
        seen = {name: values for name, values in counts.items() if any(values)}
        return Summary(f"sinks (value of {self.tau:g} or more) by role", {"layer": self.layers, **seen})

    def mask(self, *roles: Role) -> Tensor:
        """[S, B, L] bool, which tokens are sinks; if roles are given, only tokens of these roles."""
        sinks = (self.values >= self.tau) & ~self.tokens.mask(Role.PAD)
        return sinks & self.tokens.mask(*roles) if roles else sinks

    def counts(self) -> Tensor:
        """[S, B, 7], the number of sinks of each role."""
        return torch.stack([self.mask(role).sum(-1) for role in Role], -1)

    def image_map(self, sample: int = 0, image: int = 0) -> Tensor:
        """Sink values on an image's cells, [S, rows, columns]."""
        cells = self.tokens.image_cells(sample, image)
        return self.values[:, sample, cells].unflatten(1, self.tokens.grids[sample][image])


def sink_tokens(
    gaze: Gaze,
    inputs: Mapping[str, Any],
    profile: SinkProfile | None = None,
    *,
    layers: Sequence[int] | None = None,
) -> SinkTokens:
    """Tokens of text and image with massive activations in the sink dimensions.

    Source: Kang et al., "See What You Are Told: Visual Attention Sink" (arXiv:2503.03321): a token is a sink
    if phi(x) = max over the sink dimensions of |x_d| / RMS(x), of the layer's input, reaches tau.

    Args:
        inputs: from `gaze.inputs`, or `with_answers`.
        profile: sink dimensions and tau; default: those published for the base model (`sink_profile`).
        layers: numbers; None: all.

    Raises:
        BadParameterError: no profile was given, and none is published for the base model.
    """
    config = compat.text_config(gaze.model)
    profile = (
        sink_profile(config) if profile is None else sink_profile(config, profile.dimensions, profile.tau)
    )
    tokens = token_map_of(gaze, inputs)
    probe = _SinkValueProbe(profile.dimensions, range(config.num_hidden_layers) if layers is None else layers)
    with torch.no_grad():
        run_forward(gaze, inputs, probe)
    (values,) = stacked(probe.per_layer, probe.chosen)
    return SinkTokens(probe.chosen, values * ~tokens.mask(Role.PAD), profile.tau, tokens)


class _SinkValueProbe(HiddenStateProbe):
    def __init__(self, dimensions: Sequence[int], layers: Sequence[int]):
        super().__init__(layers)
        self.dimensions = dimensions
        self.per_layer: dict[int, tuple[Tensor]] = {}

    def measure(self, layer: int, hidden: Tensor) -> None:
        self.per_layer[layer] = (sink_values(hidden, self.dimensions),)


@dataclass(frozen=True, eq=False)
class SinkStability(Tabular):
    """How stable the places of sinks are from prompt to prompt.

    Attributes:
        layers: [S] numbers of the layers.
        frequency: [S, P] share of the prompts in which a place is a sink.
        jaccard: [S] mean over pairs of prompts of |both| / |either|; nan where no pair has a sink.
    """

    layers: tuple[int, ...]
    frequency: Tensor
    jaccard: Tensor

    __repr__ = short_repr

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per layer and place."""
        axes = {"layer": self.layers, "place": range(self.frequency.shape[1])}
        jaccard = self.jaccard[:, None].expand_as(self.frequency)
        return long_table(axes, frequency=self.frequency, jaccard=jaccard)


def sink_stability(prompts: Sequence[SinkTokens], *, role: Role = Role.IMAGE) -> SinkStability:
    """Compare the sinks of several prompts (all their samples) place by place.

    Args:
        prompts: from `sink_tokens`, with the same layers.
        role: IMAGE compares image tokens by their index among the prompt's image tokens, so all prompts need
            images of one size. Other roles compare text by its distance from the prompt's first token.

    Raises:
        InputError: fewer than two prompts, different layers, or different numbers of image tokens.
    """
    layers = prompts[0].layers if len(prompts) else ()
    if any(each.layers != layers for each in prompts):
        raise InputError("the prompts were measured in different layers")
    rows = [row for each in prompts for row in _places(each, role)]
    if len(rows) < 2:
        raise InputError(f"stability compares prompts, and {len(rows)} was given: give two at least")
    if role is Role.IMAGE and len({row.shape[1] for row in rows}) > 1:
        raise InputError(
            f"the prompts show {sorted({row.shape[1] for row in rows})} image tokens: give one size"
        )
    longest = max(row.shape[1] for row in rows)
    sinks = torch.stack([torch.nn.functional.pad(row, (0, longest - row.shape[1])) for row in rows])
    shares = [
        (a & b).sum(-1) / (a | b).sum(-1)
        for a, b in combinations(sinks, 2)  # 0 / 0 is nan: not counted
    ]
    return SinkStability(layers, sinks.double().mean(0), torch.stack(shares).double().nanmean(0))


def _places(prompts: SinkTokens, role: Role) -> list[Tensor]:
    """Per sample [S, P] bool: which of its places are sinks of the role."""
    places = prompts.tokens.mask(Role.IMAGE) if role is Role.IMAGE else ~prompts.tokens.mask(Role.PAD)
    return [sinks[:, mask] for sinks, mask in zip(prompts.mask(role).unbind(1), places, strict=True)]
