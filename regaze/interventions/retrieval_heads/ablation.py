"""`ablate_heads`: does a model still find the needle without the heads that attend to it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel

from regaze.display import Tabular, short_repr
from regaze.errors import BadParameterError
from regaze.interventions.knockout import HeadKnockout
from regaze.interventions.retrieval_heads.cached_prompt import CachedPrompt
from regaze.interventions.retrieval_heads.head_scores import Head, RetrievalHeads, Score
from regaze.interventions.retrieval_heads.needle_test import NeedleTest
from regaze.interventions.retrieval_heads.needles import Needle
from regaze.interventions.retrieval_heads.prompt_builder import TEMPLATE, NeedlePrompt
from regaze.interventions.retrieval_heads.trial_log import TrialLog
from regaze.kernels import AttentionEdit
from regaze.progress import Progress, reporting
from regaze.reading import StrPath
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context

CONFIDENCE = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class HeadMask:
    """Heads to mask: the best `count` ("top"), or one `draw` of as many others ("random")."""

    kind: Literal["top", "random"]
    count: int
    draw: int
    heads: tuple[Head, ...]


@dataclass(frozen=True, eq=False)
class Ablation(Tabular):
    """Needle scores with heads masked.

    Attributes:
        recall: per mask [cells], the share of the answer's words in the response, 0..1, in the order of
            `cells`.
        cells: per prompt its length, needle number and depth.
        about: how it was run.
    """

    recall: Mapping[HeadMask, np.ndarray]
    cells: list[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)

    __repr__ = short_repr

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per number and kind of masked heads: the needle score in percent, with its interval."""
        rows = [
            {"heads": count, "kind": kind if count else "none", **self.needle_score(kind, count)}
            for count in self.counts()
            for kind in (("top", "random") if count else ("top",))
        ]
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

    def needle_score(self, kind: str, count: int) -> dict[str, float]:
        """The mean recall in percent with `count` heads masked, and its 95 % interval over prompts and draws.

        Masking no head is both "top" and "random".
        """
        return _interval(100 * self._recalls(kind, count))

    def difference(self, count: int) -> dict[str, float]:
        """Needle score with the top heads masked minus that with random ones, paired by prompt."""
        return _interval(100 * (self._recalls("top", count) - self._recalls("random", count)))

    def draws(self, count: int) -> list[float]:
        """The needle score of each random draw."""
        return (100 * self._recalls("random", count).mean(1)).tolist()

    def success(self, kind: str, count: int, min_recall: float = 0.5) -> float:
        """Percent of responses that have more than `min_recall` of the answer's words."""
        return float(100 * (self._recalls(kind, count) > min_recall).mean())

    def counts(self) -> list[int]:
        """The numbers of heads masked."""
        return sorted({mask.count for mask in self.recall})

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
        masks = [
            {
                **vars(mask),
                "heads": [list(head) for head in mask.heads],
                "recall": recall.round(3).tolist(),
            }
            for mask, recall in self.recall.items()
        ]
        return {**self.about, "figures": figures, "cells": self.cells, "conditions": masks}

    def _recalls(self, kind: str, count: int) -> np.ndarray:
        """Recalls with `count` heads masked, [draws, cells]."""
        chosen = [
            r for mask, r in self.recall.items() if mask.count == count and (mask.kind == kind or not count)
        ]
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
    log: StrPath | None = None,
    progress: Progress | bool | None = None,
) -> Ablation:
    """Search for needles with the top heads masked, and with as many random other heads masked.

    In the release the "random" heads may be retrieval heads, come from a 32 x 32 grid whatever the model, and
    are drawn anew, unseeded, for each prompt; here each draw is one set of heads for all prompts. There a
    masked head averages the values (mode="uniform"); here it is removed by default.

    Args:
        model to depths, template, max_new_tokens, log: as for `find_retrieval_heads`. Use needles and a
            haystack other than those that the heads were found with.
        heads: the scored heads. score: which score ranks them.
        threshold: heads that score less are not retrieval heads.
        counts: how many heads to mask. draws: random sets per count. seed: of the random sets.
        mode: as for `HeadKnockout`.
        while_reading: mask the heads also during the prefill, at the cost of a prefill per mask. By default,
            and in the release, they are masked only during the answer, so that one prefill serves all masks.
        progress: called with ("prompts", done, total). None: a bar where one
            is seen (a terminal, a notebook); True: always; False: never.

    Raises:
        BadParameterError: more heads than there are to mask. Others as for `find_retrieval_heads`.
    """
    options: dict[str, Any] = {"template": template, "max_new_tokens": max_new_tokens}
    test = NeedleTest(model, tokenizer, haystack, needles, lengths, depths, **options)
    masks = choose_masks(heads, counts, draws, score=score, threshold=threshold, seed=seed)
    rows: list[list[float]] = []
    with TrialLog(log) as trial_log, reporting(progress) as report:
        report("prompts", 0, len(test.grid))
        for prompt in test.prompts():
            rows.append(list(_recall_with(masks, test, prompt, mode, while_reading, trial_log)))
            report("prompts", len(rows), len(test.grid))
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
    return Ablation(dict(zip(masks, columns, strict=True)), cells, about)


def choose_masks(
    heads: RetrievalHeads,
    counts: Sequence[int],
    draws: int,
    *,
    score: Score = "paper",
    threshold: float = 0.1,
    seed: int = 0,
) -> list[HeadMask]:
    """The top heads and `draws` random sets of others, for each count; the empty mask comes once.

    Raises:
        BadParameterError: no counts or draws, or more random heads than there are below the threshold.
    """
    if not counts or draws < 1:
        raise BadParameterError("masking needs at least one count and one random draw")
    others = heads.below(threshold, score)
    masks = [HeadMask("top", count, 0, tuple(heads.top(count, score))) for count in sorted(set(counts))]
    for count in sorted(set(counts) - {0}):
        top = set(heads.top(count, score))
        pool = [head for head in others if head not in top]
        if count > len(pool):
            raise BadParameterError(
                f"{count} random heads are needed, but only {len(pool)} heads score below {threshold}"
            )
        for draw in range(draws):
            # Seeded by count and draw: another list of counts does not change the draw.
            generator = np.random.default_rng([seed, count, draw])
            chosen = sorted(generator.choice(len(pool), count, replace=False).tolist())
            masks.append(HeadMask("random", count, draw, tuple(pool[i] for i in chosen)))
    return masks


class _SwitchedKnockout(Callback):
    """Applies one knock-out at a time; without `while_reading` to decode steps alone."""

    def __init__(self, knockouts: Sequence[HeadKnockout], while_reading: bool):
        self.knockouts, self.while_reading = knockouts, while_reading
        self.active = knockouts[0]

    def prepare(self, context: Context) -> None:
        for knockout in self.knockouts:
            knockout.prepare(context)

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        return self.active.edit(layer, step, context) if step or self.while_reading else None


def _recall_with(
    masks: Sequence[HeadMask],
    test: NeedleTest,
    prompt: NeedlePrompt,
    mode: Literal["zero", "uniform"],
    while_reading: bool,
    log: TrialLog,
) -> Iterator[float]:
    """Recall of one prompt's answer under each mask; the prompt is prefilled once where masks allow it."""
    switch = _SwitchedKnockout([HeadKnockout(heads=mask.heads, mode=mode) for mask in masks], while_reading)
    cached: CachedPrompt | None = None

    def run() -> dict[str, Any]:
        nonlocal cached
        if cached is None or while_reading:
            cached = CachedPrompt(test.model, prompt.ids)
        response, recall = test.judge(prompt, cached.answer(test.max_new_tokens, test.stops))
        return {"response": response, "recall": recall, "knockout": switch.active.to_dict()}

    with test.gaze.using(switch):
        for knockout in switch.knockouts:
            switch.active = knockout
            key = test.key(prompt, mode, while_reading, knockout.heads)
            yield float(log.get_or_run(key, run)["recall"])


def _interval(values: np.ndarray) -> dict[str, float]:
    """The mean of [draws, prompts] and a bootstrap interval that resamples both independently."""
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
