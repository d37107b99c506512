"""`ablate_heads`: are the heads that look at the needle also the ones that it takes to find it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel

from regaze.errors import BadParameterError
from regaze.interventions.knockout import HeadKnockout
from regaze.interventions.retrieval_heads.greedy import LongPrompt
from regaze.interventions.retrieval_heads.headfile import Head, RetrievalHeads, Score
from regaze.interventions.retrieval_heads.log import TrialLog
from regaze.interventions.retrieval_heads.needles import TEMPLATE, Needle, NeedlePrompt
from regaze.interventions.retrieval_heads.search import NeedleTest, Progress
from regaze.kernels import AttentionEdit
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context

CONFIDENCE = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class Condition:
    """Heads to mask: the best `count` of them ("top"), or one `draw` of as many others ("random")."""

    kind: Literal["top", "random"]
    count: int
    draw: int
    heads: tuple[Head, ...]


@dataclass(frozen=True, eq=False)
class Ablation:
    """Needle scores with heads masked.

    Attributes:
        recall: per condition [cells] the part of the answer's words in the response, 0..1, cells in the order
            of `cells`, the same for all conditions.
        cells: per prompt its length, needle number and depth.
        about: how it was run.
    """

    recall: Mapping[Condition, np.ndarray]
    cells: list[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)

    def needle_score(self, kind: str, count: int) -> dict[str, float]:
        """The mean recall in percent with `count` heads masked, and its 95 % interval over prompts and draws.

        Masking no head is both "top" and "random".
        """
        return _interval(100 * self._of(kind, count))

    def difference(self, count: int) -> dict[str, float]:
        """Needle score with the top heads masked minus that with random ones, paired by prompt."""
        return _interval(100 * (self._of("top", count) - self._of("random", count)))

    def draws(self, count: int) -> list[float]:
        """The needle score of each random draw."""
        return (100 * self._of("random", count).mean(1)).tolist()

    def success(self, kind: str, count: int, min_recall: float = 0.5) -> float:
        """Percent of responses that have more than `min_recall` of the answer's words."""
        return float(100 * (self._of(kind, count) > min_recall).mean())

    def counts(self) -> list[int]:
        """The numbers of heads masked."""
        return sorted({condition.count for condition in self.recall})

    def to_dict(self) -> dict[str, Any]:
        """JSON form: figures first, then what they were computed from."""
        figures = []
        for count in self.counts():
            for kind in ("top", "random") if count else ("top",):
                entry: dict[str, Any] = {"heads": count, "kind": kind if count else "none"}
                entry.update(self.needle_score(kind, count), success=self.success(kind, count))
                if kind == "random":
                    entry.update(draws=self.draws(count), top_minus_random=self.difference(count))
                figures.append(_rounded(entry))
        conditions = [
            {
                **vars(condition),
                "heads": [list(h) for h in condition.heads],
                "recall": recall.round(3).tolist(),
            }
            for condition, recall in self.recall.items()
        ]
        return {**self.about, "figures": figures, "cells": self.cells, "conditions": conditions}

    def _of(self, kind: str, count: int) -> np.ndarray:
        """[draws, cells]."""
        chosen = [r for c, r in self.recall.items() if c.count == count and (c.kind == kind or not count)]
        if not chosen:
            raise BadParameterError(f"{count} {kind} heads were not masked; there are {self.counts()}")
        return np.stack(chosen)


def ablate_heads(
    model: PreTrainedModel,
    tokenizer: Any,
    heads: RetrievalHeads,
    haystack: str | Sequence[str],
    needles: Sequence[Needle],
    lengths: Sequence[int],
    depths: Sequence[float],
    *,
    counts: Sequence[int] = (0, 2, 5, 10, 20),
    draws: int = 3,
    mode: Literal["zero", "uniform"] = "zero",
    while_reading: bool = False,
    score: Score = "paper",
    threshold: float = 0.1,
    seed: int = 0,
    template: str = TEMPLATE,
    max_new_tokens: int = 50,
    log: str | Path | None = None,
    progress: Progress | None = None,
) -> Ablation:
    """Hide needles again, with the top heads masked against as many random heads that are no retrieval heads.

    Against the release, where the "random" heads may be retrieval heads, come from a 32 x 32 grid whatever
    the model, and are drawn anew, unseeded, for each prompt; here each draw is one set of heads for all
    prompts. There a masked head averages the values (mode="uniform"); here it is removed by default.

    Args:
        model to depths, template, max_new_tokens, log: as for `find_retrieval_heads`. Use other needles and
            another haystack than those that the heads were found with.
        heads: what to mask. score, threshold: what ranks the heads, and below what one is no retrieval head.
        counts: how many heads to mask. draws: random sets per count. seed: of the random sets.
        mode: as for `HeadKnockout`.
        while_reading: mask the heads while the prompt is read, too, at the cost of a prefill per condition.
            By default, and in the release, they are missing only while the answer is generated, so that one
            prefill serves all conditions.
        progress: called with ("prompts", done, total).

    Raises:
        BadParameterError: counts that the model or its other heads cannot give; else as
            `find_retrieval_heads`.
    """
    options: dict[str, Any] = {"template": template, "max_new_tokens": max_new_tokens}
    test = NeedleTest(model, tokenizer, haystack, needles, lengths, depths, **options)
    conditions = choose(heads, counts, draws, score=score, threshold=threshold, seed=seed)
    tell = progress or (lambda what, done, total: None)
    rows: list[list[float]] = []
    with TrialLog(log) as known:
        tell("prompts", 0, len(test.grid))
        for prompt in test.prompts():
            rows.append(list(_recalls(test, prompt, conditions, mode, while_reading, known)))
            tell("prompts", len(rows), len(test.grid))
    about = {
        "heads of": heads.about.get("model"),
        **test.about(),
        "mode": mode,
        "while_reading": while_reading,
        "score": score,
        "threshold": threshold,
        "seed": seed,
    }
    cells = [{"length": length, "needle": number, "depth": depth} for length, number, depth in test.grid]
    columns = np.asarray(rows).T
    return Ablation(dict(zip(conditions, columns, strict=True)), cells, about)


def choose(
    heads: RetrievalHeads,
    counts: Sequence[int],
    draws: int,
    *,
    score: Score = "paper",
    threshold: float = 0.1,
    seed: int = 0,
) -> list[Condition]:
    """The top heads and `draws` random sets of others, for each count; masking none comes once.

    Raises:
        BadParameterError: no counts or draws, or more random heads than there are below the threshold.
    """
    if not counts or draws < 1:
        raise BadParameterError("masking needs at least one count and one random draw")
    others = heads.below(threshold, score)
    conditions = [Condition("top", count, 0, tuple(heads.top(count, score))) for count in sorted(set(counts))]
    for count in sorted(set(counts) - {0}):
        top = set(heads.top(count, score))
        pool = [head for head in others if head not in top]
        if count > len(pool):
            raise BadParameterError(
                f"{count} random heads were asked for, but only {len(pool)} score below {threshold}"
            )
        for draw in range(draws):
            # Seeded by what it is: another list of counts does not change the draw.
            generator = np.random.default_rng([seed, count, draw])
            chosen = sorted(generator.choice(len(pool), count, replace=False).tolist())
            conditions.append(Condition("random", count, draw, tuple(pool[i] for i in chosen)))
    return conditions


class _Switch(Callback):
    """Applies one knock-out at a time; unless `while_reading`, to decode steps alone."""

    def __init__(self, knockouts: Sequence[HeadKnockout], while_reading: bool):
        self.knockouts, self.while_reading = knockouts, while_reading
        self.active = knockouts[0]

    def prepare(self, context: Context) -> None:
        for knockout in self.knockouts:
            knockout.prepare(context)

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        return self.active.edit(layer, step, context) if step or self.while_reading else None


def _recalls(
    test: NeedleTest,
    prompt: NeedlePrompt,
    conditions: Sequence[Condition],
    mode: Literal["zero", "uniform"],
    while_reading: bool,
    log: TrialLog,
) -> Iterator[float]:
    """Recall of one prompt's answer under each condition. The prompt is read once if all can share that."""
    switch = _Switch([HeadKnockout(heads=c.heads, mode=mode) for c in conditions], while_reading)
    text: LongPrompt | None = None

    def run() -> dict[str, Any]:
        nonlocal text
        if text is None or while_reading:
            text = LongPrompt(test.model, prompt.ids)
        response, recall = test.judge(prompt, text.answer(test.max_new_tokens, test.stops))
        return {"response": response, "recall": recall, "knockout": switch.active.to_dict()}

    with test.gaze.using(switch):
        for knockout in switch.knockouts:
            switch.active = knockout
            key = test.key(prompt, mode, while_reading, knockout.heads)
            yield float(log.get(key, run)["recall"])


def _interval(values: np.ndarray) -> dict[str, float]:
    """The mean of [draws, prompts] and a bootstrap interval that draws both anew, independently."""
    generator = np.random.default_rng(0)
    draws, prompts = (generator.integers(size, size=(RESAMPLES, size)) for size in values.shape)
    means = values[draws[:, :, None], prompts[:, None, :]].mean((1, 2))
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value
