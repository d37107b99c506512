"""MemVR: memory-space visual retracing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.errors import BadParameterError, UnsupportedModelError
from regaze.interventions.directed import Directed
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, resolve_range
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.columns import column_index
from regaze.toolkit.prompts.token_map import Role

#: How many of the likeliest tokens tell whether a layer is unsure.
_CANDIDATES = 10


@dataclass(frozen=True)
class MemVR(Directed):
    """Look at the image again in the MLP after the first layer that is unsure of the next token.

    Source: Zou et al., "Look Twice Before You Answer: Memory-Space Visual Retracing for Hallucination
    Mitigation in Multimodal Large Language Models" (arXiv:2410.03577). In every forward the logits of the
    last row are read after layers 6 to 15 of 32. Where the ten likeliest tokens are nearly alike (entropy
    over its maximum above `threshold`) for the first time, the output F of the next layer's MLP becomes
    (1 - ratio) F + ratio s A in all rows of that forward, with A = (x Z') Z for the MLP's input x and the
    image's input embeddings Z, and s = mean |F| / mean |A| over the sample's rows, or over each row with
    `scale="row"`. Each sample is unsure for itself; all its images and tiles are in Z.

    In a forward over prompt and answer the last row decides for all, so that it differs from generating the
    answer. The ratio of the release is tuned per benchmark, 0.10 to 0.32. `ratio = 0` switches it off.

    Its control retrieves from one random direction in the place of the image's tokens, so that as much is
    added in the same places.
    """

    name: ClassVar[str] = "memvr"
    summary: ClassVar[str] = "mix the image's tokens into an MLP once a layer is unsure"
    source: ClassVar[str] = "arXiv:2410.03577"
    edits: ClassVar[str] = "the output of one MLP in each forward, in all of its rows"
    cost: ClassVar[str] = (
        "one forward; for each layer that is read the output head, and two products with the image's tokens"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("MLP outputs",),
        cost="output head",
        graphs="broken",
        needs=("hidden states", "layer logits", "whole prompt"),
    )
    release: ClassVar[str] = (
        "1zhou-Wang/MemVR, Apache-2.0. As scripted, Qwen-VL and GLM-4V are never edited, and the CHAIR "
        "script of LLaVA ignores its ratio. In a batch entropies are summed and all rows get the last "
        "sample's image; a text-only prompt gets that of an earlier one; of several images the last counts. "
        "Here samples are separate."
    )

    ratio: Fraction = field(
        default=0.12, metadata={"help": "r, share of the image in the MLP's output (0: off)"}
    )
    threshold: NonNegativeFloat = field(
        default=0.75, metadata={"help": "tau, a layer is unsure above this share of the largest entropy"}
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last layer that is read; default: 6 to 15 of 32, scaled"}
    )
    scale: Literal["sample", "row"] = field(
        default="sample", metadata={"help": "size of what is added: that of a sample's rows, or of each row"}
    )

    @property
    def is_identity(self) -> bool:
        return self.ratio == 0.0 or self.threshold >= 1.0

    @property
    def inactive(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"edit_mlp"} if self.is_identity else ())

    def prepare(self, context: Context) -> None:
        if self.is_identity:
            return
        if context.has_cross_attention:
            raise UnsupportedModelError(
                "MemVR retrieves the image's tokens of the prompt, but this model sees images through "
                "cross-attention"
            )
        image, state = context.tokens.mask(Role.IMAGE), context.state(self)
        if not image.any():
            return
        first, last = resolve_range(self.layers, (6, 15), 32, context.num_layers)
        if last + 1 >= context.num_layers:
            raise BadParameterError(
                f"the MLP after layer {last} is edited, but the model has layers 0..{context.num_layers - 1}"
            )
        state["targets"] = range(first + 1, last + 2)
        state["columns"], state["visible"] = column_index(image), ~context.tokens.mask(Role.PAD)
        state["last"] = column_index(context.tokens.last())
        context.capture_hidden((0, *state["targets"]))

    def edit_mlp(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        state = context.state(self)
        targets = state.get("targets", ())
        if layer not in targets:
            return hidden
        prompt = context.step == 0
        if layer == targets[0]:
            state["edited"] = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
            if prompt:
                image = _rows(context.captured_hidden(0), state["columns"])
                state["visual"] = self.directions({"image": image})["image"]
        for name in ("visual", "edited", "visible", "last"):
            state[name] = state[name].to(hidden.device)
        given = context.captured_hidden(layer).to(hidden.device)  # by the layer before
        row = _rows(given, state["last"]) if prompt else given[:, -1:]
        unsure = uncertainty(context.read_logits(row))[:, 0].to(hidden.device) > self.threshold
        now = unsure & ~state["edited"]
        state["edited"] = state["edited"] | now
        if context.mlp_input is None:
            raise UnsupportedModelError("MemVR reads what an MLP is given, which this model gives by keyword")
        visible = state["visible"] if prompt else None
        mixed = retrieve(context.mlp_input, hidden, state["visual"], self.ratio, visible, self.scale)
        return torch.where(now[:, None, None], mixed, hidden)


def uncertainty(logits: Tensor) -> Tensor:
    """Entropy of the ten likeliest tokens among themselves, over its maximum: [..., V] -> [...] in [0, 1]."""
    best = logits.float().topk(min(_CANDIDATES, logits.shape[-1])).values.log_softmax(-1)
    return -(best.exp() * best).sum(-1) / math.log(_CANDIDATES)


def retrieve(
    inputs: Tensor,
    outputs: Tensor,
    visual: Tensor,
    ratio: float,
    visible: Tensor | None = None,
    scale: Literal["sample", "row"] = "sample",
) -> Tensor:
    """The outputs of an MLP mixed with a retrieval of image tokens by its inputs, as large as they are.

    Args:
        inputs, outputs: [B, T, D] of the MLP.
        visual: [B, n, D] image tokens, rows of 0 where there are fewer. A sample without any is left alone.
        visible: [B, T] bool, rows that are no padding; None: all.
        scale: whether the sizes compared are means over a sample's rows, or of each row.
    """
    x, z, plain = inputs.float(), visual.float(), outputs.float()
    found = (x @ z.mT) @ z
    sizes = []
    for part in (plain, found):
        size = part.abs().mean(-1, keepdim=True)  # [B, T, 1]
        if scale == "sample":
            weight = torch.ones_like(size) if visible is None else visible[..., None].to(size)
            size = (size * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        sizes.append(size)
    gain = sizes[0] / sizes[1].clamp_min(torch.finfo(torch.float32).tiny)
    mixed = (1.0 - ratio) * plain + ratio * gain * found
    return torch.where(sizes[1] > 0, mixed, plain).to(outputs.dtype)


def _rows(hidden: Tensor, columns: Tensor) -> Tensor:
    """[B, n, D] rows of [B, L, D] at `columns` [B, n], 0 where these are -1."""
    columns = columns.to(hidden.device)
    found = hidden.gather(1, columns.clamp_min(0)[..., None].expand(-1, -1, hidden.shape[-1]))
    return found.masked_fill((columns < 0)[..., None], 0.0)
