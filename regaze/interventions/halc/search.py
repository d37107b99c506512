"""One answer word by word, each object word decided anew by what is seen around its box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regaze.interventions.detection.detections import Box
from regaze.interventions.halc.words import ObjectWords
from regaze.toolkit.model.continuations import Continuations, Stop

#: Most tokens that a word which was decided anew may still grow by.
_LONGEST_WORD = 16


class Focus(NamedTuple):
    """How an object word was decided.

    Attributes:
        word: what the model wrote at first. chosen: what stays.
        box: where it was looked for, in pixels of the image. found: whether the detector found it there.
        pairs: the fields (a, b) that were contrasted.
    """

    word: str
    chosen: str
    box: Box
    found: bool
    pairs: tuple[tuple[int, int], ...]


class Looked(NamedTuple):
    """What was seen for a word: scores [candidates, V] of its first token, and where from."""

    scores: Tensor
    box: Box
    found: bool
    pairs: tuple[tuple[int, int], ...]


class FocalSearch:
    """Greedy decoding of one prompt that goes back to each object word, once.

    Args:
        continuations: the prompt in the cache.
        look: (name of the object, ids of the answer before it) -> what was seen; None: leave the word.
        choose: texts of the answer up to the new word -> number of the best; None: the surest candidate.

    Attributes:
        ids: of the answer. focuses: in the order of the words.
    """

    def __init__(
        self,
        continuations: Continuations,
        words: ObjectWords,
        stop: Stop,
        look: Callable[[str, list[int]], Looked | None],
        choose: Callable[[list[str]], int] | None,
    ):
        self.continuations, self.words, self.stop = continuations, words, stop
        self.look, self.choose = look, choose
        self.ids: list[int] = []
        self.focuses: list[Focus] = []
        self._decided = -1  # the first token of the last word that was decided
        self._ends = set(stop.eos_ids.tolist())

    def run(self) -> list[int]:
        """The ids of the answer, with the token that ends it."""
        while True:
            token = int(self.continuations.logits[0].argmax())
            if self.words.ends_before(self.ids, token) and self._decide():
                if self.ids[-1] in self._ends:
                    return self.ids[: self.stop.max_new_tokens]
                continue
            if len(self.ids) >= self.stop.max_new_tokens:
                return self.ids[: self.stop.max_new_tokens]
            self.ids.append(token)
            if token in self._ends:
                return self.ids
            self.continuations.feed(torch.tensor([[token]]))

    def _decide(self) -> bool:
        """Decide the word that the answer ends in anew; whether it has changed."""
        word = self.words.last(self.ids)
        if word is None or word.start <= self._decided:
            return False
        self._decided = word.start
        before, drafted = self.ids[: word.start], self.ids[word.start :]
        looked = self.look(word.name, before)
        if looked is None:
            return False
        chosen = self._chosen(before, drafted, looked.scores)
        if chosen != drafted:
            self.ids = [*before, *chosen]
            self.continuations.restart(torch.tensor([self.ids]))
        written, stays = (self._text(before, each) for each in (drafted, chosen))
        self.focuses.append(Focus(written, stays, looked.box, looked.found, looked.pairs))
        return chosen != drafted

    def _chosen(self, before: list[int], drafted: list[int], scores: Tensor) -> list[int]:
        """The tokens of the word: those of the best candidate."""
        surest, tokens = scores.softmax(-1).max(-1)
        order = surest.argsort(descending=True, stable=True)
        firsts = list(dict.fromkeys(tokens[order].tolist()))
        if self.choose is None:
            firsts = firsts[:1]
        if firsts == drafted[:1]:
            return drafted
        words = self._completed(before, firsts)
        if self.choose is None or len(words) == 1:
            best = 0
        else:
            best = self.choose([self._decoded([*before, *word]) for word in words])
        if words[best] == drafted:  # the cache holds the candidates now
            self.continuations.restart(torch.tensor([[*before, *drafted]]))
        return words[best]

    def _completed(self, before: list[int], firsts: Sequence[int]) -> list[list[int]]:
        """Each first token and what the model adds to it until the word ends."""
        rows = [[*before, first] for first in firsts]
        self.continuations.restart(torch.tensor(rows))
        growing = {number for number, row in enumerate(rows) if row[-1] not in self._ends}
        for _ in range(_LONGEST_WORD):
            tokens = self.continuations.logits.argmax(-1).tolist()
            growing = {n for n in growing if tokens[n] not in self._ends and self._grows(rows[n], tokens[n])}
            if not growing:
                break
            for number in growing:
                rows[number].append(tokens[number])
            self.continuations.feed(torch.tensor(tokens)[:, None])
        return [row[len(before) :] for row in rows]

    def _grows(self, ids: list[int], token: int) -> bool:
        """Whether `token` continues the word at the end of `ids`."""
        return not self.words.ends_before(ids, token) and self._decoded(ids)[-1:].isalnum()

    def _text(self, before: list[int], word: list[int]) -> str:
        return self._decoded([*before, *word])[len(self._decoded(before)) :].strip()

    def _decoded(self, ids: list[int]) -> str:
        text: str = self.words.tokenizer.decode(ids, skip_special_tokens=True)
        return text
