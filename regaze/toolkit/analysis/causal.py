"""Causal effect of attention heads: the answer with the top heads of a ranking removed, and with random ones.

The caller passes the function that removes heads, so that any intervention can be used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.display import Tabular, short_repr
from regaze.errors import BadParameterError
from regaze.progress import counting
from regaze.toolkit.analysis.answers import answer_log_probs
from regaze.toolkit.analysis.intervals import Estimate, estimate
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.wrap import Gaze

Head = tuple[int, int]
#: Maps heads to remove to [samples], the log-probability of each sample's answer without them.
HeadScorer = Callable[[Sequence[Head]], Tensor]


def ranked_heads(scores: Tensor) -> list[Head]:
    """Heads of `scores` [layers, Hq] as (layer, head), the highest first, ties in order."""
    order = scores.flatten().argsort(descending=True, stable=True).tolist()
    return [divmod(place, scores.shape[1]) for place in order]


def without_heads(
    gaze: Gaze,
    batches: Sequence[tuple[object, Tensor]],
    remove: Callable[[tuple[Head, ...]], Callback],
) -> HeadScorer:
    """A `HeadScorer` for some prompts.

    Args:
        batches: (inputs of B prompts, answers [B, T]), the arguments of `answer_log_probs`.
        remove: makes the intervention, for example `lambda heads: HeadKnockout(heads=heads)`.
    """

    def score(heads: Sequence[Head]) -> Tensor:
        callbacks = (remove(tuple(heads)),) if heads else ()
        with gaze.using(*callbacks):
            return torch.cat([answer_log_probs(gaze.model, *batch).sum(1) for batch in batches])

    return score


@dataclass(frozen=True, eq=False)
class HeadEffects(Tabular):
    """Log-probabilities of S answers with heads removed.

    Attributes:
        counts: [K] numbers of removed heads.
        plain: [S] with all heads.
        top: [K, S] without the first heads of the ranking.
        others: [K, D, S] without as many random other heads, D draws.
    """

    counts: tuple[int, ...]
    plain: Tensor
    top: Tensor
    others: Tensor

    __repr__ = short_repr

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per number of heads and kind of change, see `change`."""
        rows = [
            (count, kind, each.value, each.low, each.high)
            for index, count in enumerate(self.counts)
            for kind, each in self.change(index).items()
        ]
        names = ("heads", "without", "change", "low", "high")
        return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))

    def change(self, index: int) -> dict[str, Estimate]:
        """Mean changes in nats for `counts[index]` heads, with intervals over the samples: "top" heads,
        "others" (mean of the draws), and their paired "difference".
        """
        top, others = self.top[index] - self.plain, self.others[index].mean(0) - self.plain
        return {"top": estimate(top), "others": estimate(others), "difference": estimate(top - others)}


def head_effects(
    score: HeadScorer,
    ranking: Sequence[Head],
    counts: Sequence[int],
    *,
    draws: int = 5,
    same_layers: bool = True,
    seed: int = 0,
    progress: Callable[[int], None] | bool | None = None,
) -> HeadEffects:
    """Remove the first k heads of a ranking, and as a control k random other heads.

    Args:
        ranking: all heads of the model, the most important first, ranked on other samples.
        counts: the values of k. draws: number of random controls per k.
        same_layers: draw the controls from the layers of the top heads, as many from each, as long as the
            layer has other heads; the rest comes from any layer. Early layers matter more whatever the head.
        progress: called with 1 after each set of heads. None: a bar where one
            is seen (a terminal, a notebook); True: always; False: never.

    Raises:
        BadParameterError: a count that leaves fewer than k other heads.
    """
    counts = tuple(counts)
    if not counts or min(counts) < 1 or 2 * max(counts) > len(ranking):
        raise BadParameterError(f"counts must be within 1..{len(ranking) // 2}, got {list(counts)}")
    generator = torch.Generator().manual_seed(seed)
    sets = 1 + len(counts) * (1 + draws)
    with counting(progress, "sets of heads", sets) as report:

        def scored(heads: Sequence[Head]) -> Tensor:
            found = score(heads)
            report(1)
            return found

        plain = scored(())
        top = torch.stack([scored(ranking[:count]) for count in counts])
        others = [
            torch.stack([scored(_draw(ranking, count, same_layers, generator)) for _ in range(draws)])
            for count in counts
        ]
    return HeadEffects(counts, plain, top, torch.stack(others))


def _draw(ranking: Sequence[Head], count: int, same_layers: bool, generator: torch.Generator) -> list[Head]:
    """`count` random heads that are not among the first `count` of the ranking."""
    rest = [ranking[count + place] for place in torch.randperm(len(ranking) - count, generator=generator)]
    if not same_layers:
        return rest[:count]
    drawn: list[Head] = []
    for layer, _ in ranking[:count]:
        match = next((head for head in rest if head[0] == layer), None)
        if match is not None:
            rest.remove(match)
            drawn.append(match)
    return drawn + rest[: count - len(drawn)]
