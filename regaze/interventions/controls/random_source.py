"""A random head's map in the place of the one that a method copies to other heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.interventions.base import Intervention
from regaze.interventions.controls.base import InterventionVariant
from regaze.interventions.controls.variants import with_behaviour
from regaze.kernels import AttentionEdit, HeadRule, HeadSource, Placeable
from regaze.toolkit.model.context import Context


@dataclass(frozen=True)
class RandomSource(InterventionVariant):
    """The method with the map of another head, drawn at random for each layer.

    Prompts that the method leaves alone stay so. What it loses by this is its idea whose map is worth
    copying; what stays is that all heads look at the same places.
    """

    name: ClassVar[str] = "random-source"
    summary: ClassVar[str] = "the method with the map of another head than it chooses, drawn at random"
    source: ClassVar[str] = "ours"
    edits: ClassVar[str] = "as the method"
    cost: ClassVar[str] = "as the method"

    seed: int = field(default=0, metadata={"help": "seed of the draw"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not getattr(self.of, "copies_maps", False):
            raise BadParameterError(
                f"'random-source' takes a method that copies a head's map to others, such as eah; "
                f"{self.of.name!r} does not"
            )

    def for_model(self, config: Any) -> Intervention:
        heads = config.num_attention_heads
        generator = torch.Generator().manual_seed(self.seed)
        shifts = torch.randint(max(1, heads - 1), (config.num_hidden_layers,), generator=generator) + 1
        return with_behaviour(self.of, _Shifted, shifts=shifts.tolist())


class _Shifted(Intervention):
    """Replaces the rule of the method beneath."""

    shifts: list[int]

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        edit = super().edit(layer, step, context)
        source = None if edit is None else edit.head_source
        if edit is None or source is None:
            return edit
        if source.index is not None:
            return edit.replace(head_source=HeadSource(shifted(source.index, self.shifts[layer])))
        assert source.rule is not None
        known = context.state(self).setdefault(RandomSource, {})
        if layer not in known:
            rule = _Other(source.rule, self.shifts[layer])
            known[layer] = edit.replace(head_source=HeadSource(rule=rule, rows=source.rows))
        changed: AttentionEdit = known[layer]
        return changed


@dataclass(frozen=True, eq=False)
class _Other(Placeable):
    """The head that comes `shift` heads after the one that `rule` chooses, where it chooses one."""

    rule: HeadRule
    shift: int

    def __call__(self, received: Tensor, seen: Tensor) -> Tensor:
        return shifted(self.rule(received, seen), self.shift)


def shifted(index: Tensor, shift: int) -> Tensor:
    """Sources [B, Hq] `shift` heads further, in the samples where a head has the map of another."""
    count = index.shape[1]
    own = torch.arange(count, device=index.device)
    copies = (index != own).any(1, keepdim=True)
    return torch.where(copies, (index + shift) % count, own)
