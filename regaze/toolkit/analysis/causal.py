"""Do the heads that a map or a score points at matter? The answer with them removed, and with others removed.

The heads are removed by a function that the caller passes in, so that any intervention can be the knife.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regaze.errors import BadParameterError
from regaze.toolkit.analysis.intervals import Estimate, estimate
from regaze.toolkit.analysis.occlusion import answer_log_probs
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.wrap import Gaze

Head = tuple[int, int]
#: From heads to remove to [samples], the log-probability of each sample's answer without them.
HeadScorer = Callable[[Sequence[Head]], Tensor]


def ranked_heads(scores: Tensor) -> list[Head]:
    """Heads of [layers, Hq] scores as (layer, head), the highest first, ties in order."""
    order = scores.flatten().argsort(descending=True, stable=True).tolist()
    return [divmod(place, scores.shape[1]) for place in order]


def without_heads(
    gaze: Gaze,
    batches: Sequence[tuple[object, Tensor]],
    remove: Callable[[tuple[Head, ...]], Callback],
) -> HeadScorer:
    """A `HeadScorer` over some prompts.

    Args:
        batches: (inputs of B prompts, answers [B, T]) as `answer_log_probs` takes them.
        remove: what removes heads, for example `lambda heads: HeadKnockout(heads=heads)`.
    """

    def score(heads: Sequence[Head]) -> Tensor:
        callbacks = (remove(tuple(heads)),) if heads else ()
        with gaze.using(*callbacks):
            return torch.cat([answer_log_probs(gaze.model, *batch).sum(1) for batch in batches])

    return score


@dataclass(frozen=True, eq=False)
class HeadEffects:
    """Answers without heads.

    Attributes:
        counts: [K] how many heads were removed. plain: [S] log-probability of each answer, untouched.
        top: [K, S] without the first heads of the ranking. others: [K, D, S] without as many others, D draws.
    """

    counts: tuple[int, ...]
    plain: Tensor
    top: Tensor
    others: Tensor

    def change(self, place: int) -> dict[str, Estimate]:
        """Mean changes in nats for `counts[place]`, with intervals over the samples: of the top heads, of the
        others (mean of draws), and of the top beyond the others, pair by pair.
        """
        top, others = self.top[place] - self.plain, self.others[place].mean(0) - self.plain
        return {"top": estimate(top), "others": estimate(others), "difference": estimate(top - others)}


def head_effects(
    score: HeadScorer,
    ranking: Sequence[Head],
    counts: Sequence[int],
    *,
    draws: int = 5,
    same_layers: bool = True,
    seed: int = 0,
) -> HeadEffects:
    """Remove the first k heads of a ranking, and k random ones that are not among them.

    Args:
        ranking: every head of the model, the most important first; choose it on other samples.
        same_layers: draw as many from each layer as the top heads have there, as far as it has others left
            (the rest comes from anywhere): early layers matter more whatever heads do.

    Raises:
        BadParameterError: a count for which no k others are left.
    """
    counts = tuple(counts)
    if not counts or min(counts) < 1 or 2 * max(counts) > len(ranking):
        raise BadParameterError(f"counts must be within 1..{len(ranking) // 2}, got {list(counts)}")
    generator = torch.Generator().manual_seed(seed)
    plain = score(())
    top = torch.stack([score(ranking[:count]) for count in counts])
    others = [
        torch.stack([score(_draw(ranking, count, same_layers, generator)) for _ in range(draws)])
        for count in counts
    ]
    return HeadEffects(counts, plain, top, torch.stack(others))


def _draw(ranking: Sequence[Head], count: int, same_layers: bool, generator: torch.Generator) -> list[Head]:
    """`count` random heads behind the first `count` of the ranking."""
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
