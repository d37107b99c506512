"""VHR: vision-aware head reinforcement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.contrastive import WITHOUT_IMAGE, has_image
from regaze.interventions.controls.random_heads import RandomHeads, random_ranks
from regaze.interventions.controls.variants import with_behaviour
from regaze.interventions.facts import Facts
from regaze.interventions.layer_ranges import require_attention, scaled_range
from regaze.interventions.parameters import Layers
from regaze.kernels import AttentionEdit
from regaze.kernels.head_rules import outstanding_heads
from regaze.toolkit.model.attention_call import AttentionCall
from regaze.toolkit.model.branches import measurement_inputs, without_image
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.token_map import Role


@dataclass(frozen=True)
class VHR(Intervention):
    """Amplify the heads whose output changes most where the image is taken away.

    Source: He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence"
    (arXiv:2412.13949). One prefill measures, per sample and layer, how far the outputs of each head at the
    prompt's last token are apart with and without the image. Heads whose distance and whose output without
    the image both stand out by a deviation are outliers and count 0. The heads above the layer's median are
    multiplied by `alpha`, there as well, in both contexts, so that a layer is measured behind amplified ones;
    then in all rows and steps of the answer. Layers are the second and the last 14 of 32.

    That all rows of the prompt are amplified, and both contexts, the paper leaves open. With
    `measure="plain"` heads are chosen in a model in which nothing is amplified, as a port to Qwen2.5-VL does.
    Prompts without an image are left alone.
    """

    name: ClassVar[str] = "vhr"
    summary: ClassVar[str] = "amplify the heads whose output changes most without the image"
    source: ClassVar[str] = "arXiv:2412.13949"
    edits: ClassVar[str] = "outputs of heads in chosen layers, in every row and step"
    cost: ClassVar[str] = "one more prefill, of two rows per prompt; then one forward"
    facts: ClassVar[Facts] = Facts(edits=("head outputs",), cost="another prefill", needs=("all heads",))
    release: ClassVar[str] = "jinghan1he/VHR, Apache-2.0, was not read: this is the paper's algorithm."
    fixed_edits = True

    alpha: NonNegativeFloat = field(
        default=2.0, metadata={"help": "factor of the heads' output (1: no edit)"}
    )
    layers: Layers | None = field(
        default=None, metadata={"help": "edited layers; default: 1 and 18 to 31 of 32, scaled"}
    )
    measure: Literal["amplified", "plain"] = field(
        default="amplified",
        metadata={"help": "compare heads behind layers that are amplified already, or in a plain model"},
    )

    @property
    def is_identity(self) -> bool:
        return self.alpha == 1.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (RandomHeads(self),)

    def with_random_heads(self, seed: int) -> Intervention:
        """The method with as many heads in each sample and layer, drawn at random."""
        return with_behaviour(self, _RandomHeads, head_seed=seed, fixed_edits=True)

    def chosen(self, layer: int, seeing: Tensor, blind: Tensor) -> Tensor:
        """The heads of a layer that are amplified, see `vision_aware`."""
        return vision_aware(seeing, blind)

    def branches(self, context: Context) -> Mapping[str, Branch]:
        """No branches; heads are chosen here because the context has only the user's rows here."""
        if not self.is_identity and has_image(context).any():
            layers = self.layers_of(context.num_layers)
            require_attention(context, layers)
            measured = _Measured(self, layers, context)
            context.extra_forward(measurement_inputs(context), measured)
            context.state(self)["gains"] = measured.gains
        return {}

    def prepare(self, context: Context) -> None:
        state, contexts = context.state(self), context.batch // context.user_batch
        gains: dict[int, Tensor] = state.get("gains", {})
        state["edits"] = {k: AttentionEdit(head_gain=v.repeat(contexts, 1)) for k, v in gains.items()}

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        edits: dict[int, AttentionEdit] = context.state(self)["edits"]
        return edits.get(layer)

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """The edited layers of a model with `depth` layers."""
        if self.layers is None:
            first, last = scaled_range(18, 31, 32, depth)
            return tuple(sorted({min(1, depth - 1), *range(first, last + 1)}))
        if self.layers[-1] >= depth:
            raise BadParameterError(
                f"layer {self.layers[-1]} does not exist: the model has layers 0..{depth - 1}"
            )
        return tuple(self.layers)


def vision_aware(seeing: Tensor, blind: Tensor) -> Tensor:
    """Which heads change most without the image, [B, Hq] bool, from their outputs [B, Hq, D]."""
    distance, size = (seeing - blind).norm(dim=-1), blind.square().sum(-1)
    outliers = outstanding_heads(distance, 1.0) & outstanding_heads(size, 1.0)
    distance = distance.masked_fill(outliers, 0.0)
    return distance > distance.median(1, keepdim=True).values


class _RandomHeads(Intervention):
    """Amplifies as many heads as the method beneath would, drawn once per layer for all samples."""

    head_seed: int

    def chosen(self, layer: int, seeing: Tensor, blind: Tensor) -> Tensor:
        beneath: Any = super()
        count = beneath.chosen(layer, seeing, blind).sum(1, keepdim=True)
        return random_ranks(seeing.shape[1], layer, self.head_seed).to(count.device) < count


class _Measured(Callback):
    """Chooses the heads of one layer after another, and may amplify them before the next."""

    def __init__(self, method: VHR, layers: tuple[int, ...], context: Context):
        self._method, self._layers, self._image = method, layers, has_image(context)
        self._last = (context.tokens.answering() & ~context.tokens.mask(Role.OUTPUT)).int().argmax(1)
        self.gains: dict[int, Tensor] = {}  # [B, Hq] by layer

    def branches(self, context: Context) -> Mapping[str, Branch]:
        return {WITHOUT_IMAGE: without_image(context)}

    def on_attention(self, layer: int, call: AttentionCall, context: Context) -> None:
        if layer not in self._layers:
            return
        self._last, self._image = (x.to(call.output.device) for x in (self._last, self._image))
        index = self._last.repeat(2)[:, None, None, None].expand(-1, 1, *call.output.shape[2:])
        seeing, blind = call.output.gather(1, index)[:, 0].float().chunk(2)
        chosen = self._method.chosen(layer, seeing, blind) & self._image[:, None]
        gain = torch.where(chosen, self._method.alpha, 1.0)
        self.gains[layer] = gain
        if self._method.measure == "amplified":
            call.output.mul_(gain.repeat(2, 1)[:, None, :, None])  # what the layer goes on with
