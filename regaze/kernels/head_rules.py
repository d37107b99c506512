"""Rules over the heads of a layer: which ones a statistic singles out, and what becomes of their channels.

`ScaleHeads` is a policy (policies.py) whose coefficients follow from comparing heads: by rank (the k with
most mass on a channel) or with the mean of the layer. SPIN's and GIFT's are instances. A rule needs the
statistics of all heads of a row at once: the fused kernels run it in one of its own between their two halves,
and where heads lie on several devices it takes one gather per layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regaze.caching import cached_property
from regaze.errors import BadParameterError
from regaze.kernels.policies import TritonPart, constant, pad_channels


def top_heads(statistic: Tensor, count: int) -> Tensor:
    """Which heads have the `count` largest, [B, Hq, R] bool, of a statistic [B, Hq, R].

    Of equal heads the lower ones are chosen; in a row whose statistic is 0 in every head there is nothing to
    rank, and all are.
    """
    order = statistic.argsort(dim=1, descending=True, stable=True)
    chosen = (statistic == 0).all(1, keepdim=True).expand_as(statistic)
    return chosen.scatter(1, order[:, :count], True)


def outstanding_heads(statistic: Tensor, deviations: float) -> Tensor:
    """Which heads lie more than so many standard deviations above the mean of all heads.

    [B, Hq, ...] bool, of a statistic of this shape.
    """
    mean = statistic.mean(1, keepdim=True)
    deviation = statistic.std(1, keepdim=True, correction=0)
    return statistic > mean + deviations * deviation


@dataclass(frozen=True)
class HeadChoice:
    """Heads of a layer, chosen anew in every row by their mass on a channel.

    Give `top` or `deviations`.

    Attributes:
        channel: its mass is what heads are compared by; with `over`, its ratio to the mass of that channel
            (0 where a head has none of that).
        top: how many heads with most, see `top_heads`.
        deviations: those so many standard deviations above the mean, see `outstanding_heads`.
    """

    channel: int
    over: int | None = None
    top: int | None = None
    deviations: float | None = None

    def __post_init__(self) -> None:
        if (self.top is None) == (self.deviations is None):
            raise BadParameterError("a HeadChoice takes either `top` or `deviations`")
        if self.top is not None and self.top < 0:
            raise BadParameterError(f"HeadChoice.top must not be negative, got {self.top}")

    def __call__(self, masses: Tensor) -> Tensor:
        """[B, Hq, R] bool from masses [B, Hq, R, K]."""
        statistic = masses[..., self.channel]
        if self.over is not None:
            whole = masses[..., self.over]
            share = statistic / whole.clamp_min(torch.finfo(whole.dtype).tiny)
            statistic = torch.where(whole > 0, share, 0.0)
        if self.top is not None:
            return top_heads(statistic, self.top)
        assert self.deviations is not None
        return outstanding_heads(statistic, self.deviations)


@dataclass(frozen=True)
class HeadStep:
    """What a choice does: coefficients of all K channels in the chosen heads, and in the others.

    The *gain* of a step is the factor by which the mass on the channels that it treats differently grows,
    in its chosen heads together (1 where they have none).

    Attributes:
        gained: a channel whose coefficient in the chosen heads is multiplied by the gain of the step before.
    """

    choice: HeadChoice
    chosen: tuple[float, ...]
    others: tuple[float, ...]
    gained: int | None = None

    def rise(self) -> tuple[float, ...]:
        """1 for the channel `gained`, 0 for others."""
        return tuple(float(k == self.gained) for k in range(len(self.chosen)))

    def changed(self, weighted: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Coefficients of the channels that the step treats differently, after it and in plain attention."""
        pairs = list(zip(self.chosen, self.others, strict=True))
        after = tuple(a if a != b else 0.0 for a, b in pairs)
        before = tuple(float(k not in weighted and a != b) for k, (a, b) in enumerate(pairs))
        return after, before

    def numbers(self, weighted: tuple[int, ...]) -> tuple[float, ...]:
        """As device functions read them, see `triton/head_rules.py`."""
        choice, channels = self.choice, range(len(self.chosen))
        rows = [[float(k == channel) for k in channels] for channel in (choice.channel, choice.over)]
        by_rank = choice.deviations is None
        amount = float(choice.top or 0) if choice.deviations is None else choice.deviations
        every = pad_channels(*rows, self.chosen, self.others, self.rise(), *self.changed(weighted))
        return (*every, float(by_rank), amount)


class _Step(NamedTuple):
    """A step on one device.

    Attributes:
        chosen, others: coefficients [K].
        rise: which of them rises with the gain before, [K] bool; None where none does.
        changed: what the step's own gain compares, [K, 2]; None where nobody needs it.
    """

    choice: HeadChoice
    chosen: Tensor
    others: Tensor
    rise: Tensor | None
    changed: Tensor | None


@dataclass(frozen=True)
class ScaleHeads:
    """Coefficients by head: the product of what each step gives a head's channels.

    Attributes:
        steps: in order; all choose by the masses of the softmax.
        renormalise: whether a row keeps its total mass.
        weighted: the channels that are no groups: their coefficient in plain attention is 0.
    """

    steps: tuple[HeadStep, ...]
    renormalise: bool = False
    weighted: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = {len(values) for step in self.steps for values in (step.chosen, step.others)}
        if len(counts) != 1:
            raise BadParameterError(f"steps must name equally many channels, got {sorted(counts) or 'none'}")
        named = [k for step in self.steps for k in (step.choice.channel, step.choice.over, step.gained)]
        for channel in (*named, *self.weighted):
            if channel is not None and not 0 <= channel < self.channels:
                raise BadParameterError(f"channel must be in 0..{self.channels - 1}, got {channel}")

    @property
    def channels(self) -> int:
        return len(self.steps[0].chosen)

    @property
    def plain(self) -> tuple[float, ...]:
        """Coefficients of plain attention."""
        return tuple(float(k not in self.weighted) for k in range(self.channels))

    def __call__(self, masses: Tensor) -> Tensor:
        device, dtype = masses.device, masses.dtype
        tiny = torch.finfo(dtype).tiny
        coefficients, gain = None, None
        for choice, chosen, others, rise, changed in self._steps_on(device, dtype):
            picked = choice(masses)[..., None]  # [B, Hq, R, 1]
            if gain is not None and rise is not None:
                chosen = torch.where(rise, chosen * gain, chosen)
            factors = torch.where(picked, chosen, others)
            coefficients = factors if coefficients is None else coefficients * factors
            gain = None
            if changed is not None:
                held, had = ((masses @ changed) * picked).sum(1, keepdim=True).split(1, -1)
                gain = torch.where(had > 0, held / had.clamp_min(tiny), 1.0)
        assert coefficients is not None
        if not self.renormalise:
            return coefficients
        edited = (masses * coefficients).sum(-1, keepdim=True)
        total = masses @ constant(self.plain, device, dtype)
        return coefficients * torch.where(edited > 0, total[..., None] / edited.clamp_min(tiny), 1.0)

    def _steps_on(self, device: torch.device, dtype: torch.dtype) -> list[_Step]:
        known = self._prepared.get((device, dtype))
        if known is None:
            known = self._prepared[device, dtype] = _prepared(self, device, dtype)
        return known

    @cached_property
    def _prepared(self) -> dict[tuple[torch.device, torch.dtype], list[_Step]]:
        return {}

    def triton_part(self, heads: int) -> TritonPart:
        steps = [number for step in self.steps for number in step.numbers(self.weighted)]
        numbers = (float(len(self.steps)), float(self.renormalise), *pad_channels(self.plain), *steps)
        return TritonPart("regaze.kernels.triton.head_rules:scale_heads", numbers, couples_heads=True)


def _prepared(rule: ScaleHeads, device: torch.device, dtype: torch.dtype) -> list[_Step]:
    """What the steps of a rule need as tensors."""
    steps: list[_Step] = []
    for number, step in enumerate(rule.steps):
        chosen, others = (constant(values, device, dtype) for values in (step.chosen, step.others))
        rise, changed = None, None
        with torch.inference_mode(False):  # they outlive the block that needs them first
            if step.gained is not None:
                rise = constant(step.rise(), device, dtype) > 0
            if number + 1 < len(rule.steps) and rule.steps[number + 1].gained is not None:
                pairs = [constant(values, device, dtype) for values in step.changed(rule.weighted)]
                changed = torch.stack(pairs, 1)
        steps.append(_Step(step.choice, chosen, others, rise, changed))
    return steps
