"""Beam search that penalises candidates by their attention and goes back where all beams over-trust a token.

The search of OPERA (arXiv:2311.17911), from its equations. A step runs every candidate of every beam in one
forward. A candidate's own attention row decides on it, and the same forward has filled its row of the cache
and predicted what follows it, so that the chosen candidates are not run again.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regaze.interventions.opera.last_layer import LastLayerAttention
from regaze.interventions.opera.over_trust import (
    grow_columns,
    over_trust_penalty,
    penalised_log_probs,
    rollback_column,
    row_modes,
)
from regaze.toolkit.model.continuations import Continuations


class SearchRules(NamedTuple):
    """The hyper-parameters of `OPERA`, which documents them."""

    num_beams: int
    candidates: int
    scale: float
    penalty_weight: float
    window: int | None
    reward_tokens: int
    threshold: int
    min_position: int
    max_rollbacks: int
    as_released: bool


class StopCriteria(NamedTuple):
    """When the search is over, as in `generate`. eos_ids: [e] tokens that end an answer."""

    eos_ids: Tensor
    max_new_tokens: int = 128
    length_penalty: float = 1.0
    early_stopping: bool | str = False


class Hypothesis(NamedTuple):
    """A finished answer: its score, the sum of log-probabilities / length**length_penalty, and its ids."""

    score: float
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Beams:
    """The n live beams after t tokens; on the CPU.

    Attributes:
        ids: [n, t]. scores: [n] float64.
        columns: [n, t] float64 column scores, see `grow_columns`.
        strongest: [n, t], the strongest column at each step.
        finished: the best finished answers so far, best first.
    """

    ids: Tensor
    scores: Tensor
    columns: Tensor
    strongest: Tensor
    finished: tuple[Hypothesis, ...] = ()


class BeamSearch:
    """Beam search for one prompt.

    Args:
        continuations: the prompt in the cache.
        image: [L] bool on the CPU, the prompt's image tokens.
        attention: receives the attention of the forwards; None: nothing is penalised.

    Attributes:
        rollbacks: for each time the search went back, the position of the token that was chosen again.
    """

    def __init__(
        self,
        rules: SearchRules,
        stop: StopCriteria,
        continuations: Continuations,
        image: Tensor,
        attention: LastLayerAttention | None,
    ):
        self.rules, self.stop, self.continuations = rules, stop, continuations
        self.image, self.attention = image, attention
        self.rollbacks: list[int] = []
        self._history: list[Beams] = []  # the beams before each token
        self._tries: Counter[int] = Counter()
        self._forbidden: defaultdict[int, set[int]] = defaultdict(set)

    def run(self) -> Hypothesis:
        """The best answer."""
        empty = torch.zeros(1, 0, dtype=torch.int64)
        beams = Beams(empty, torch.zeros(1, dtype=torch.float64), empty.double(), empty)
        while not self._is_done(beams):
            self._history.append(beams)
            beams = self._step(beams)
        return beams.finished[0]

    def _step(self, beams: Beams) -> Beams:
        tokens, log_probs = self._candidates(beams)
        count, width = tokens.shape
        parents = torch.arange(count).repeat_interleave(width)
        ids = torch.cat([beams.ids[parents], tokens.reshape(-1, 1)], 1)
        columns, strongest, scores = beams.columns[parents], beams.strongest, log_probs
        if self.attention is not None:
            self.continuations.select(parents)
            self.continuations.feed(ids[:, -1:])
            columns, penalty, column = self._penalty(columns, self.attention.take())
            strongest = torch.cat([strongest, row_modes(column.view(count, width))[:, None]], 1)
            if (position := self._rollback_position(strongest)) is not None:
                return self._roll_back(position)
            weight, as_released = self.rules.penalty_weight, self.rules.as_released
            scores = penalised_log_probs(log_probs, penalty.view(count, width), weight, as_released)
        totals = (beams.scores[:, None] + scores).flatten()
        chosen, finished = self._choose(ids, totals, beams.finished)
        if self.attention is not None:
            self.continuations.select(chosen)
        elif len(chosen):
            self.continuations.select(parents[chosen])
            self.continuations.feed(ids[chosen, -1:])
        return Beams(ids[chosen], totals[chosen], columns[chosen], strongest[parents[chosen]], finished)

    def _candidates(self, beams: Beams) -> tuple[Tensor, Tensor]:
        """The likeliest tokens of each beam and their log-probabilities [n, c]; of equals the lower id."""
        forbidden = sorted(self._forbidden[beams.ids.shape[1]])
        log_probs = self.continuations.logits.log_softmax(1)
        log_probs[:, forbidden] = -math.inf
        values, tokens = log_probs.sort(dim=1, descending=True, stable=True)
        # The single beam of the prompt must yield all beams, and one more for each token that ends an answer.
        # So must every beam where nothing is penalised, which makes this the ordinary search.
        width = self.rules.num_beams + len(self.stop.eos_ids)
        if self.attention is not None:
            width = max(self.rules.candidates, 0 if beams.ids.shape[1] else width)
        width = min(width, values.shape[1] - len(forbidden))
        return tokens[:, :width].cpu(), values[:, :width].cpu().double()

    def _penalty(self, columns: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Columns with the newest token's row [n, keys], the penalty [n], the strongest column [n]."""
        length = self.continuations.prompt_length
        columns = grow_columns(columns, row[:, length:], self.rules.scale)
        penalty, strongest = over_trust_penalty(columns, self.rules.window)
        if columns.shape[1] <= self.rules.reward_tokens:
            penalty = -row[:, :length][:, self.image].sum(1)
        return columns, penalty, strongest

    def _choose(
        self, ids: Tensor, totals: Tensor, finished: tuple[Hypothesis, ...]
    ) -> tuple[Tensor, tuple[Hypothesis, ...]]:
        """The candidates [m, t] that continue, best first, and the best finished answers."""
        length, beams = ids.shape[1], self.rules.num_beams
        order = totals.argsort(descending=True, stable=True)
        ended = torch.isin(ids[order, -1], self.stop.eos_ids) | (length == self.stop.max_new_tokens)
        new = [
            Hypothesis(float(totals[i]) / length**self.stop.length_penalty, tuple(ids[i].tolist()))
            for i in order[:beams][ended[:beams]]
        ]
        best = sorted([*finished, *new], key=lambda hypothesis: -hypothesis.score)
        return order[~ended][:beams], tuple(best[:beams])

    def _is_done(self, beams: Beams) -> bool:
        """Whether no beam is left, or none can still beat the worst of a full list of answers."""
        if not len(beams.ids):
            return True
        if len(beams.finished) < self.rules.num_beams:
            return False
        early, penalty = self.stop.early_stopping, self.stop.length_penalty
        longest = early == "never" and penalty > 0
        length = self.stop.max_new_tokens if longest else beams.ids.shape[1]
        return early is True or float(beams.scores[0]) / length**penalty <= beams.finished[-1].score

    # Going back ---------------------------------------------------------------------------------------

    def _rollback_position(self, strongest: Tensor) -> int | None:
        """Position of the token to choose again; None: go on."""
        column = rollback_column(strongest, self.rules.threshold, self.rules.min_position)
        if column is None:
            return None
        positions = range(column + 1, self.rules.min_position, -1)
        return next((p for p in positions if self._tries[p] < self.rules.max_rollbacks), None)

    def _roll_back(self, position: int) -> Beams:
        """The beams before the token at `position`; the tokens chosen there are forbidden from now on."""
        self.rollbacks.append(position)
        self._tries[position] += 1
        self._forbidden[position].update(self._history[position + 1].ids[:, position].tolist())
        for later in [p for p in self._forbidden if p > position]:
            del self._forbidden[later]
        beams = self._history[position]
        del self._history[position:]
        assert self.attention is not None
        self.attention.active = False
        self.continuations.restart(beams.ids)
        self.attention.active = True
        return beams
