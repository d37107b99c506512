"""SPARC: selective progressive attention recalibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from regaze.errors import InputError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.controls import UniformColumns
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import LayerRange, attention_range
from regaze.interventions.parameters import Fraction
from regaze.kernels import AttentionEdit, RowSelection, Stats, StatsRequest
from regaze.toolkit.model import compat
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.columns import column_index, scatter_columns
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class SPARC(Intervention):
    """Raise, permanently, the values of image tokens whose attention has just risen.

    Source: Jung et al., "Visual Attention Never Fades: Selective Progressive Attention ReCalibration for
    Detailed Image Captioning in Multimodal Large Language Models" (arXiv:2502.01419). At every step a_t is
    the attention of the newest row on each image token in one layer, averaged over heads, and ema its moving
    average, which begins with the prompt's last row. A token with (a_t - ema) / ema >= tau has its value
    multiplied by alpha in `layers` from the next step on, once each time this happens; then ema becomes
    (1 - beta) a_t + beta ema. Scaling a value scales the attention on it without renormalising.

    The first two tokens come from the plain model. Under beam search average and factors follow their beam.
    """

    name: ClassVar[str] = "sparc"
    summary: ClassVar[str] = "permanently scale up the values of image tokens whose attention has just risen"
    source: ClassVar[str] = "arXiv:2502.01419"
    edits: ClassVar[str] = "values of image tokens from the third token on, as if the cache were scaled"
    cost: ClassVar[str] = "one forward; one row of one layer at the image's columns at every step"
    counts_steps: ClassVar[bool] = True
    prompt_needs: ClassVar[str | None] = ""
    plans_ahead = True
    facts: ClassVar[Facts] = Facts(
        edits=("values",), when=("answer",), cost="one forward", needs=("all heads",)
    )
    release: ClassVar[str] = (
        "mingi000508/SPARC, no licence. Multiplies the cache itself, in place; one prompt at a time; the "
        "image's first column is a constant."
    )

    alpha: PositiveFloat = field(
        default=1.1, metadata={"help": "factor of a value for each rise (1: no edit)"}
    )
    tau: float = field(default=1.5, metadata={"help": "least relative rise of attention that scales a token"})
    beta: Fraction = field(default=0.1, metadata={"help": "weight of the past in the moving average"})
    selected_layer: NonNegativeInt | None = field(
        default=None, metadata={"help": "layer whose attention is measured; default: 20 of 32, scaled"}
    )
    layers: LayerRange | None = field(
        default=None, metadata={"help": "first and last edited layer; default: all"}
    )

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        return "plain"

    @property
    def is_identity(self) -> bool:
        return self.alpha == 1.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (UniformColumns(self),)

    def prepare(self, context: Context) -> None:
        tokens, state = context.tokens, context.state(self)
        image = tokens.mask(Role.IMAGE)
        if self.is_identity or not image.any():
            return
        if not compat.uses_cache(context.inputs):  # every step would be a prefill
            raise InputError("SPARC follows attention from step to step, which needs use_cache=True")
        given = None if self.selected_layer is None else (self.selected_layer, self.selected_layer)
        state["selected"] = attention_range(context, given, (20, 20))[0]
        state["layers"] = attention_range(context, self.layers, (0, 31))
        answer = StatsRequest(columns=column_index(image))
        state["requests"] = replace(answer, rows=RowSelection.where(tokens.last())), answer

    def on_step(self, context: Context, input_ids: Tensor | None) -> None:
        """Take the factors so far, of reordered beams: what this step measures acts in the next one."""
        state = context.state(self)
        if context.step > 1 and "requests" in state:
            request, gain = state["requests"][1], context.row_state(self)["gain"]
            columns = request.to(gain.device).columns
            gain = scatter_columns(gain, columns, context.prompt_length, 1.0)
            edit = AttentionEdit(value_gain=gain[:, None])
            state["edits"] = edit, edit.replace(stats=request)

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        state = context.state(self)
        if "selected" not in state:
            return None
        measured = layer == state["selected"]
        first, last = state["layers"]
        edited = step > 1 and first <= layer <= last  # the first rise shows at step 1
        if not measured and not edited:
            return None
        request = state["requests"][min(step, 1)]
        if not edited:
            return request.as_edit
        return state["edits"][measured]

    def on_stats(self, layer: int, stats: Stats, context: Context) -> None:
        kept = context.row_state(self)
        assert stats.slices is not None
        now = stats.slices.mean(1)  # [batch, R, n]; one row is active in each sample
        if context.step == 0 or context.replaying:
            kept["average"] = now.sum(1)
            kept["gain"] = torch.ones_like(kept["average"])
            return
        for row in now.unbind(1):  # one, unless a step feeds several tokens
            average = kept["average"]
            risen = (average > 0) & (row - average >= self.tau * average)
            kept["gain"] = torch.where(risen, kept["gain"] * self.alpha, kept["gain"])
            kept["average"] = (1.0 - self.beta) * row + self.beta * average
