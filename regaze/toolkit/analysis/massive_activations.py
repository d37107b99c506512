"""Attention sinks: the massive activations that make them, the tokens that are some, and whether they stay.

How the sink dimensions of a base model are known or found is in `regaze.toolkit.analysis.sink_profile`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from regaze.errors import BadParameterError, InputError
from regaze.toolkit.analysis.forward import AttentionProbe, HiddenStateProbe, run_forward, token_map_of
from regaze.toolkit.analysis.sink_profile import SinkProfile, sink_profile, sink_values
from regaze.toolkit.model import compat
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import Role, TokenMap
from regaze.toolkit.wrap import Gaze

# Massive activations ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class MassiveActivations:
    """The largest activations of the residual stream in each layer, padding left out.

    Attributes:
        layers: [S] as in `LogitLens`: what enters layer l, and what leaves the last one.
        values: [S, B, k] fp32 with their sign, largest magnitude first.
        positions, dimensions: [S, B, k] int64, where they are: the token's column and the hidden dimension.
        median: [S, B] median magnitude of the stream.
    """

    layers: tuple[int, ...]
    values: Tensor
    positions: Tensor
    dimensions: Tensor
    median: Tensor

    def massive(self, least: float = 100.0, ratio: float = 1000.0) -> Tensor:
        """[S, B, k] bool: larger than `least` and than `ratio` medians, the paper's (loose) definition."""
        size = self.values.abs()
        return (size > least) & (size > ratio * self.median[..., None])

    def __str__(self) -> str:
        lines = ["layer sample    median  largest (column, dimension)"]
        for number, layer in enumerate(self.layers):
            for sample in range(self.values.shape[1]):
                places = zip(self.positions[number, sample], self.dimensions[number, sample], strict=True)
                text = "  ".join(
                    f"{float(value):9.2f} ({int(column)}, {int(dimension)})"
                    for value, (column, dimension) in zip(self.values[number, sample], places, strict=True)
                )
                lines.append(f"{layer:5d} {sample:6d} {float(self.median[number, sample]):9.4f}  {text}")
        return "\n".join(lines)

    __repr__ = __str__


def massive_activations(
    gaze: Gaze, inputs: Mapping[str, Any], *, k: int = 3, layers: Sequence[int] | None = None
) -> MassiveActivations:
    """The largest activations per layer: a few dimensions of a few tokens, the same whatever the input.

    Source: Sun et al., "Massive Activations in Large Language Models" (arXiv:2402.17762), whose figure of the
    top 3 and the median over layers this is.

    Args:
        inputs: from `gaze.inputs`, or `with_answers`. k: how many.
        layers: see `MassiveActivations`; None: all.
    """
    if k < 1:
        raise BadParameterError(f"k must be at least 1, got {k}")
    meter = _Largest(k, layers)
    with torch.no_grad():
        run_forward(gaze, inputs, meter)
    parts = (torch.stack(part) for part in zip(*(meter.found[layer] for layer in meter.chosen), strict=True))
    return MassiveActivations(meter.chosen, *parts)


class _Largest(HiddenStateProbe):
    def __init__(self, k: int, layers: Sequence[int] | None):
        super().__init__(layers)
        self.k = k
        self.found: dict[int, tuple[Tensor, ...]] = {}

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.visible = context.visible

    def measure(self, layer: int, hidden: Tensor) -> None:
        width, visible = hidden.shape[-1], self.visible.to(hidden.device)
        size = hidden.float().abs().masked_fill(~visible[..., None], -1.0).flatten(1)
        index = size.topk(self.k, dim=1).indices
        values = hidden.float().flatten(1).gather(1, index)
        median = torch.stack(
            [row[shown].float().abs().median() for row, shown in zip(hidden, visible, strict=True)]
        )
        found = (values, index // width, index % width, median)
        self.found[layer] = tuple(tensor.cpu() for tensor in found)


# Sink tokens --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SinkTokens:
    """Which tokens are sinks in which layer.

    Attributes:
        layers: [S] numbers of the layers, whose input is looked at.
        values: [S, B, L] fp32 sink value phi of each token; 0 for padding.
        tau: its threshold.
        tokens: roles of the prompt.
    """

    layers: tuple[int, ...]
    values: Tensor
    tau: float
    tokens: TokenMap

    def mask(self, *roles: Role) -> Tensor:
        """[S, B, L] bool, the sinks, of these roles alone if any are given."""
        sinks = (self.values >= self.tau) & ~self.tokens.mask(Role.PAD)
        return sinks & self.tokens.mask(*roles) if roles else sinks

    def counts(self) -> Tensor:
        """[S, B, 7], how many sinks there are of each role."""
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
    """The tokens of text and image whose activations in the sink dimensions are massive.

    Source: Kang et al., "See What You Are Told: Visual Attention Sink" (arXiv:2503.03321): a sink is where
    phi(x) = max over the sink dimensions of |x_d| / RMS(x), of the layer's input, reaches tau.

    Args:
        inputs: from `gaze.inputs`, or `with_answers`.
        profile: sink dimensions and tau; default: those known of the base model (`sinks.sink_profile`).
        layers: numbers; None: all.

    Raises:
        BadParameterError: nothing is known of the base model and no profile was given.
    """
    config = compat.text_config(gaze.model)
    profile = (
        sink_profile(config) if profile is None else sink_profile(config, profile.dimensions, profile.tau)
    )
    tokens = token_map_of(gaze, inputs)
    meter = _Values(profile.dimensions, range(config.num_hidden_layers) if layers is None else layers)
    with torch.no_grad():
        run_forward(gaze, inputs, meter)
    values = torch.stack([meter.found[layer] for layer in meter.chosen])
    return SinkTokens(meter.chosen, values * ~tokens.mask(Role.PAD), profile.tau, tokens)


class _Values(HiddenStateProbe):
    def __init__(self, dimensions: Sequence[int], layers: Sequence[int]):
        super().__init__(layers)
        self.dimensions = dimensions
        self.found: dict[int, Tensor] = {}

    def measure(self, layer: int, hidden: Tensor) -> None:
        self.found[layer] = sink_values(hidden, self.dimensions).cpu()


@dataclass(frozen=True, eq=False)
class SinkStability:
    """Whether the same places are sinks from prompt to prompt.

    Attributes:
        layers: [S] numbers of the layers.
        frequency: [S, P] share of the prompts in which a place is a sink.
        jaccard: [S] mean over pairs of prompts of |both| / |either|; nan where no pair has a sink.
    """

    layers: tuple[int, ...]
    frequency: Tensor
    jaccard: Tensor


def sink_stability(prompts: Sequence[SinkTokens], *, role: Role = Role.IMAGE) -> SinkStability:
    """Compare the sinks of several prompts (all their samples) place by place.

    Args:
        prompts: from `sink_tokens`, with the same layers.
        role: IMAGE compares image tokens by their number among the prompt's image tokens, so the prompts must
            show images of one size; others compare text by its distance from the prompt's first token.

    Raises:
        InputError: fewer than two prompts, other layers, or image tokens of other number.
    """
    layers = prompts[0].layers if len(prompts) else ()
    if any(each.layers != layers for each in prompts):
        raise InputError("the prompts were looked at in different layers")
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


def _places(found: SinkTokens, role: Role) -> list[Tensor]:
    """Per sample [S, P] bool: which of its places are sinks of the role."""
    sinks, rows = found.mask(role), []
    for sample in range(found.tokens.batch):
        shown = found.tokens.mask(Role.IMAGE if role is Role.IMAGE else Role.PAD)[sample]
        rows.append(sinks[:, sample, shown if role is Role.IMAGE else ~shown])
    return rows


# Sinks of attention -------------------------------------------------------------------------------------


def key_importance(gaze: Gaze, inputs: Mapping[str, Any], *, layers: Sequence[int] | None = None) -> Tensor:
    """How much attention each token receives on average from those that see it, [S, B, Hq, L] fp32.

    Source: Gu et al., "When Attention Sink Emerges in Language Models" (arXiv:2410.10781): the mean of
    column k over rows i >= k; where it exceeds 0.3 the token is a sink of the head. Under `gaze.using(...)`
    that of the edited attention.

    Args:
        inputs: from `gaze.inputs`, or `with_answers`. layers: numbers; None: all.
    """
    meter = _Received(layers)
    with torch.no_grad():
        run_forward(gaze, inputs, meter)
    return torch.stack([meter.found[layer] for layer in meter.chosen])


class _Received(AttentionProbe):
    def __init__(self, layers: Sequence[int] | None):
        super().__init__(layers)
        self.found: dict[int, Tensor] = {}

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.visible = context.visible

    def measure(self, layer: int, call: AttentionCall) -> None:
        visible = self.visible.to(call.query.device)
        total = call.query.new_zeros(self.batch, call.query.shape[1], visible.shape[1], dtype=torch.float32)
        for rows, weights in self.blocks(call):
            total[..., : weights.shape[-1]] += (weights * visible[:, None, rows, None]).sum(2)
        count = visible.sum(1, keepdim=True).expand_as(visible)
        if call.causal:
            count = visible.flip(1).cumsum(1).flip(1)
        self.found[layer] = (total / count.clamp_min(1)[:, None]).cpu()
