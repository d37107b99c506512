"""Beam search that weighs candidates by the attention they pay, and goes back where all beams fell for it.

The search of OPERA (`method.py`), from its equations. A step runs every candidate of every
beam in one forward: a candidate's own attention row decides on it, and the same forward has filled its row of
the cache and predicted what follows it, so that those which are chosen are not run again.

Column scores are products down the columns of a triangle that grows by a row per token. Their logarithms
grow by a sum, never leave the range of floats, and are all of the attention that is kept.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.interventions.opera.rows import LastRow, Rows

if TYPE_CHECKING:
    from regaze.interventions.opera.method import OPERA

#: ln of the factor that brings column products into the range of logits.
_LOG_UNIT = math.log(1e-7)
#: A penalty above which a candidate is out in any case; below it float64 still tells its logits apart.
_MOST = math.log(1e6)


# Scoring --------------------------------------------------------------------------------------------------


def grown(columns: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Logarithms of the column products, one token later.

    Args:
        columns: [n, t-1], sum of ln(scale * weight) down each column.
        weights: [n, t], the new token's attention on the answer, its own key last.

    Returns:
        [n, t].
    """
    return F.pad(columns, (0, 1)) + (scale * weights.double()).log()


def over_trust(columns: Tensor, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Penalty [n] of the strongest of the last `window` columns, and which it is [n]; the first of equals."""
    first = 0 if window is None else max(0, columns.shape[1] - window)
    strongest, place = columns[:, first:].max(1)
    return (strongest + _LOG_UNIT).clamp_max(_MOST).exp(), place + first


def weighed(log_probs: Tensor, penalty: Tensor, weight: float, as_released: bool = False) -> Tensor:
    """Log-probabilities [n, c] of candidates after their logits were lowered by weight * penalty [n, c].

    Candidates share what they had together; `as_released` they share all.
    """
    shares = (log_probs - weight * penalty).log_softmax(1)
    return shares if as_released else shares + log_probs.logsumexp(1, keepdim=True)


def most_frequent(places: Tensor) -> Tensor:
    """[n], the mode of each row of column numbers [n, c]; the first column of equals."""
    return F.one_hot(places).sum(1).argmax(1)


def agreed_place(places: Tensor, threshold: int, min_position: int) -> int | None:
    """The column that all beams lean on, from the strongest column of each beam at each step [n, t].

    None unless each beam's present one has come up more than `threshold` times and is `min_position` or
    later. The earliest where beams differ: the search goes back for all of them.
    """
    now = places[:, -1:]
    often = (places == now).sum(1) > threshold
    earliest = int(now.min())
    return earliest if bool(often.all()) and earliest >= min_position else None


# Searching ------------------------------------------------------------------------------------------------


class Hypothesis(NamedTuple):
    """A finished answer: its score, the sum of log-probabilities / length**length_penalty, and its ids."""

    score: float
    ids: tuple[int, ...]


class Ends(NamedTuple):
    """When the search is over, as in `generate`. ids: [e] tokens that end an answer."""

    ids: Tensor
    max_new_tokens: int = 128
    length_penalty: float = 1.0
    early_stopping: bool | str = False


@dataclass(frozen=True, eq=False)
class Beams:
    """The n live beams once t tokens are chosen; on the CPU.

    Attributes:
        ids: [n, t]. scores: [n] float64. columns: [n, t] float64, see `grown`.
        places: [n, t], the strongest column at each step. finished: the best answers so far, best first.
    """

    ids: Tensor
    scores: Tensor
    columns: Tensor
    places: Tensor
    finished: tuple[Hypothesis, ...] = ()


class BeamSearch:
    """Beam search for one prompt under the rules of an `OPERA`.

    Args:
        rows: the prompt. image: [L] bool on the CPU, its image tokens.
        probe: sees the attention of the forwards; None where nothing is to be penalised.

    Attributes:
        rollbacks: the position of the token that was chosen anew, for each time the search went back.
    """

    def __init__(self, rules: OPERA, ends: Ends, rows: Rows, image: Tensor, probe: LastRow | None):
        self.rules, self.ends, self.rows, self.image, self.probe = rules, ends, rows, image, probe
        self.rollbacks: list[int] = []
        self._states: list[Beams] = []
        self._tries: Counter[int] = Counter()
        self._forbidden: defaultdict[int, set[int]] = defaultdict(set)

    def run(self) -> Hypothesis:
        """The best answer."""
        none = torch.zeros(1, 0, dtype=torch.int64)
        beams = Beams(none, torch.zeros(1, dtype=torch.float64), none.double(), none)
        while not self._over(beams):
            self._states.append(beams)
            beams = self._step(beams)
        return beams.finished[0]

    def _step(self, beams: Beams) -> Beams:
        tokens, log_probs = self._candidates(beams)
        count, width = tokens.shape
        parents = torch.arange(count).repeat_interleave(width)
        ids = torch.cat([beams.ids[parents], tokens.reshape(-1, 1)], 1)
        columns, places, scores = beams.columns[parents], beams.places, log_probs
        if self.probe is not None:
            self.rows.keep(parents)
            self.rows.feed(ids[:, -1:])
            columns, penalty, strongest = self._penalty(columns, self.probe.taken())
            places = torch.cat([places, most_frequent(strongest.view(count, width))[:, None]], 1)
            if (target := self._target(places)) is not None:
                return self._back_to(target)
            weight, as_released = self.rules.penalty_weight, self.rules.as_released
            scores = weighed(log_probs, penalty.view(count, width), weight, as_released)
        totals = (beams.scores[:, None] + scores).flatten()
        chosen, finished = self._chosen(ids, totals, beams.finished)
        if self.probe is not None:
            self.rows.keep(chosen)
        elif len(chosen):
            self.rows.keep(parents[chosen])
            self.rows.feed(ids[chosen, -1:])
        return Beams(ids[chosen], totals[chosen], columns[chosen], places[parents[chosen]], finished)

    def _candidates(self, beams: Beams) -> tuple[Tensor, Tensor]:
        """The likeliest tokens of each beam and their log-probabilities [n, c]; of equals the lower id."""
        forbidden = sorted(self._forbidden[beams.ids.shape[1]])
        log_probs = self.rows.logits.log_softmax(1)
        log_probs[:, forbidden] = -math.inf
        values, tokens = log_probs.sort(dim=1, descending=True, stable=True)
        # A single beam must give all beams, and one more for each way to end: the prompt's, and any where
        # nothing is penalised, which makes this the ordinary search.
        width = self.rules.num_beams + len(self.ends.ids)
        if self.probe is not None:
            width = max(self.rules.candidates, 0 if beams.ids.shape[1] else width)
        width = min(width, values.shape[1] - len(forbidden))
        return tokens[:, :width].cpu(), values[:, :width].cpu().double()

    def _penalty(self, columns: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Columns with the row [n, keys] of the newest token, the penalty [n], the strongest column [n]."""
        columns = grown(columns, row[:, self.rows.prompt :], self.rules.scale)
        penalty, place = over_trust(columns, self.rules.window)
        if columns.shape[1] <= self.rules.reward_tokens:
            penalty = -row[:, : self.rows.prompt][:, self.image].sum(1)
        return columns, penalty, place

    def _chosen(
        self, ids: Tensor, totals: Tensor, finished: tuple[Hypothesis, ...]
    ) -> tuple[Tensor, tuple[Hypothesis, ...]]:
        """Which candidates [m, t] go on, best first, and the finished with those that end among the best."""
        length, beams = ids.shape[1], self.rules.num_beams
        order = totals.argsort(descending=True, stable=True)
        ended = torch.isin(ids[order, -1], self.ends.ids) | (length == self.ends.max_new_tokens)
        new = [
            Hypothesis(float(totals[i]) / length**self.ends.length_penalty, tuple(ids[i].tolist()))
            for i in order[:beams][ended[:beams]]
        ]
        best = sorted([*finished, *new], key=lambda hypothesis: -hypothesis.score)
        return order[~ended][:beams], tuple(best[:beams])

    def _over(self, beams: Beams) -> bool:
        """No beam is left, or none can still be better than the worst of a full list of answers."""
        if not len(beams.ids):
            return True
        if len(beams.finished) < self.rules.num_beams:
            return False
        early, penalty = self.ends.early_stopping, self.ends.length_penalty
        longest = early == "never" and penalty > 0
        length = self.ends.max_new_tokens if longest else beams.ids.shape[1]
        return early is True or float(beams.scores[0]) / length**penalty <= beams.finished[-1].score

    # Going back ---------------------------------------------------------------------------------------

    def _target(self, places: Tensor) -> int | None:
        """Position of the token to choose anew; None: go on."""
        place = agreed_place(places, self.rules.threshold, self.rules.min_position)
        if place is None:
            return None
        positions = range(place + 1, self.rules.min_position, -1)
        return next((p for p in positions if self._tries[p] < self.rules.max_rollbacks), None)

    def _back_to(self, target: int) -> Beams:
        """The beams before the token `target` was chosen; what was chosen there is forbidden from now on."""
        self.rollbacks.append(target)
        self._tries[target] += 1
        self._forbidden[target].update(self._states[target + 1].ids[:, target].tolist())
        for later in [p for p in self._forbidden if p > target]:
            del self._forbidden[later]
        beams = self._states[target]
        del self._states[target:]
        assert self.probe is not None
        self.probe.active = False
        self.rows.restart(beams.ids)
        self.probe.active = True
        return beams
