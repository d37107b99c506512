"""VISTA: visual information steering with token-logit augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.interventions.contrastive import has_image
from regaze.interventions.directed import Directed
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, resolve_range
from regaze.interventions.parameters import Fraction
from regaze.kernels import AttentionEdit, Placeable
from regaze.toolkit.model.branches import measurement_inputs, without_image
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class VISTA(Directed):
    """Steer the residual stream towards the image's contribution, and add the logits of late layers.

    Source: Li et al., "The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language Models via
    Visual Information Steering" (arXiv:2502.03628).

    Steering: v of a layer is the residual stream after it at the prompt's last token, with the image minus
    without it, from two separate prefills. Every output x of that layer's MLP, at every token of prompt and
    answer, becomes normalise(x/|x| + strength s v/|v|) |x| with s = 1 + max(0, -cos(x, v)). Augmentation:
    logits become (1 - share) logits + share times the mean of the logits computed, without the final norm,
    from the residual stream that enters layers 25 to 30 of 32 (scaled to other depths).

    The release uses a strength of 0.17 for captions and 0.01 for POPE. Prompts without an image are not
    steered.
    """

    name: ClassVar[str] = "vista"
    summary: ClassVar[str] = "steer MLP outputs towards the image's contribution, and add late layers' logits"
    source: ClassVar[str] = "arXiv:2502.03628"
    edits: ClassVar[str] = "MLP outputs at prefill and every step, and logits at every step"
    cost: ClassVar[str] = "two more prefills; then one forward, and the output head once more"
    facts: ClassVar[Facts] = Facts(
        edits=("MLP outputs", "logits"),
        cost="another prefill",
        graphs="broken",
        needs=("hidden states", "layer logits"),
    )
    release: ClassVar[str] = (
        "LzVv123456/VISTA, MIT. One prompt at a time; it adds the principal component of a single "
        "difference, which is an arbitrary direction. Here v is the difference itself, per sample."
    )

    strength: NonNegativeFloat = field(default=0.1, metadata={"help": "lambda of the steering (0: none)"})
    share: Fraction = field(default=0.3, metadata={"help": "share of the late layers' logits (0: none)"})
    window: LayerRange | None = field(
        default=None,
        metadata={"help": "first and last layer whose input is used; default: 25 to 30 of 32, scaled"},
    )

    @property
    def inactive(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset() if self.strength else frozenset({"branches", "edit_mlp"})

    @property
    def is_identity(self) -> bool:
        return self.strength == 0.0 and self.share == 0.0

    def branches(self, context: Context) -> Mapping[str, Branch]:
        """No branches; the vectors are computed here because the context has only the user's rows here."""
        if self.strength and has_image(context).any():
            last = (context.tokens.answering() & ~context.tokens.mask(Role.OUTPUT)).int().argmax(1)
            with_image, text_only = _Residual(last), _Residual(last)
            context.extra_forward(measurement_inputs(context), with_image)
            context.extra_forward(measurement_inputs(context, without_image(context)), text_only)
            context.state(self)["vectors"] = {
                layer: contribution(seeing, text_only.outputs[layer])
                for layer, seeing in with_image.outputs.items()
            }
        return {}

    def prepare(self, context: Context) -> None:
        state = context.state(self)
        contexts = context.batch // context.user_batch
        vectors = self.directions(state.get("vectors", {}))
        state["vectors"] = {layer: v.repeat(contexts, 1) for layer, v in vectors.items()}
        if self.share:
            first, last = resolve_range(self.window, (25, 30), 32, context.num_layers)
            state["window"] = tuple(range(first, last + 1))
            context.capture_hidden(state["window"])

    def edit_mlp(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        vectors = context.state(self)["vectors"]
        if layer not in vectors:
            return hidden
        vectors[layer] = vectors[layer].to(hidden.device)  # measured where the next layer lies
        return steer(hidden, vectors[layer], self.strength)

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        window = context.state(self).get("window")
        if window is None:
            return None
        device = context.logits().device
        late = [context.user_hidden(layer).to(device).float() for layer in window]
        # The head is linear: the logits of the mean are the mean of the logits (before a soft cap).
        logits = context.read_logits(torch.stack(late).mean(0), normalise=False)
        return LogitsCombination(1.0 - self.share, [(self.share, logits)])


def contribution(seeing: Tensor, blind: Tensor) -> Tensor:
    """What the image adds to hidden states [B, D]; 0 where that is rounding, whose direction means nothing.

    Such are layers in which the last row does not see so far back, behind a sliding window.
    """
    found = seeing - blind
    rounding = 4.0 * torch.finfo(seeing.dtype).eps * seeing.norm(dim=-1, keepdim=True)
    return found.masked_fill(found.norm(dim=-1, keepdim=True) <= rounding, 0.0)


def steer(hidden: Tensor, vectors: Tensor, strength: float) -> Tensor:
    """Turn `hidden` [B, T, D] towards `vectors` [B, D], more where it points away; its norm is unchanged."""
    x, v = hidden.float(), vectors.float()[:, None]
    away = 1.0 + (-F.cosine_similarity(x, v, dim=-1)).clamp_min(0.0)[..., None]
    turned = F.normalize(x, dim=-1) + strength * away * F.normalize(v, dim=-1)
    return (F.normalize(turned, dim=-1) * x.norm(dim=-1, keepdim=True)).to(hidden.dtype)


@dataclass(frozen=True, eq=False)
class _Places(Placeable):
    """One token of each row of a batch, [B] each."""

    row: Tensor
    column: Tensor


class _Residual(Callback):
    """Keeps the residual stream that leaves each layer at one token per row, `last` [B]."""

    needs_hidden_states: ClassVar[bool] = True

    def __init__(self, last: Tensor):
        self._places = _Places(torch.arange(len(last)), last)
        self.outputs: dict[int, Tensor] = {}  # layer -> [B, D]

    def prepare(self, context: Context) -> None:
        context.capture_hidden((context.num_layers,))

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        if layer > 0:
            self._keep(layer - 1, context.hidden_states(layer))
        return None

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        self._keep(context.num_layers - 1, context.captured_hidden(context.num_layers))
        return None

    def _keep(self, layer: int, hidden: Tensor) -> None:
        places = self._places.to(hidden.device)
        self.outputs[layer] = hidden[places.row, places.column]
