"""Finding hallucination heads: which heads support words for absent objects, by removing one head at a time.

The attribution step of Yang et al., "Mitigating Hallucinations in Large Vision-Language Models via
Modular Attribution and Intervention" (ICLR 2025): how much the removal of a head lowers the log-probability
of hallucinated object words, minus how much it lowers that of words for objects in the image. How the authors
average is not known to us; here each word counts once.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.display import Tabular, long_table, short_repr
from regaze.errors import InputError
from regaze.kernels import AttentionEdit
from regaze.progress import counting
from regaze.reading import StrPath
from regaze.toolkit.analysis.answers import append_tokens
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.content_words import Word, tokens_of
from regaze.toolkit.prompts.pairs import Images
from regaze.toolkit.wrap import Gaze
from regaze.writing import replace_file

Span = tuple[int, int]


@dataclass(frozen=True)
class Caption:
    """An answer about an image, with its object words marked.

    Attributes:
        image: one image, or several. question: the user's question. answer: the model's text.
        hallucinated, grounded: (start, end) characters of words in the answer for objects that are not in the
            image, and for objects that are; `end` is exclusive.
    """

    image: Images
    question: str
    answer: str
    hallucinated: tuple[Span, ...] = ()
    grounded: tuple[Span, ...] = ()

    @classmethod
    def marked(
        cls, image: Images, question: str, answer: str, words: Iterable[str], present: Collection[str]
    ) -> Caption:
        """Mark every whole-word occurrence of `words`: grounded where the word is in `present`."""
        spans: dict[bool, list[Span]] = {True: [], False: []}
        for word in words:
            found = re.finditer(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE)
            spans[word in present] += [match.span() for match in found]
        return cls(image, question, answer, tuple(sorted(spans[False])), tuple(sorted(spans[True])))


@dataclass(frozen=True, eq=False)
class Influence(Tabular):
    """How much the heads of a model support object words.

    Attributes:
        hallucinated, grounded: [layers, heads], decrease of the log-probability of such words when a head is
            removed, mean over the words.
    """

    hallucinated: Tensor
    grounded: Tensor

    __repr__ = short_repr

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per head."""
        layers, heads = self.score.shape
        axes = {"layer": range(layers), "head": range(heads)}
        return long_table(axes, score=self.score, hallucinated=self.hallucinated, grounded=self.grounded)

    @property
    def score(self) -> Tensor:
        """[layers, heads], positive where a head supports hallucinated words more than grounded ones."""
        return self.hallucinated - self.grounded

    def top(self, count: int = 20) -> tuple[tuple[int, int], ...]:
        """The heads with the highest scores, highest first."""
        heads = self.score.shape[1]
        order = self.score.flatten().argsort(descending=True, stable=True)[:count]
        return tuple(divmod(number, heads) for number in order.tolist())

    def save(self, path: StrPath, count: int = 20) -> None:
        """Write the top heads, and both tables, as JSON that `ADHH.from_file` reads."""
        tables = {"hallucinated": self.hallucinated.tolist(), "grounded": self.grounded.tolist()}
        text = json.dumps({"hal_heads": self.top(count), **tables})
        replace_file(path, text + "\n")


def find_hallucination_heads(
    gaze: Gaze,
    captions: Sequence[Caption],
    heads_at_once: int = 16,
    progress: Callable[[int], None] | bool | None = None,
) -> Influence:
    """Remove every head of the model, one at a time, and measure the marked words' log-probabilities.

    Costs layers x heads / `heads_at_once` + 1 forwards of a batch of `heads_at_once` per caption.

    Args:
        captions: with marked words of both kinds.
        heads_at_once: rows of a forward; each row lacks a different head.
        progress: called with 1 after each caption. None: a bar where one is seen (a terminal, a
            notebook); True: always; False: never.

    Raises:
        InputError: no hallucinated or no grounded word is marked.
    """
    for kind in ("hallucinated", "grounded"):
        if not any(getattr(caption, kind) for caption in captions):
            raise InputError(f"no {kind} word is marked in {len(captions)} caption(s): nothing to compare")
    config = gaze.model.config.get_text_config(decoder=True)
    shape = (config.num_hidden_layers, config.num_attention_heads)
    pairs = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    counts = dict.fromkeys(("hallucinated", "grounded"), 0)
    sums = {kind: torch.zeros(len(pairs), dtype=torch.float64) for kind in counts}
    with counting(progress, "captions", len(captions)) as report:
        for caption in captions:
            inputs, answer, offsets = _with_answer(gaze, caption)
            plain = _log_probabilities(gaze, inputs, answer, [None])
            parts = [pairs[start : start + heads_at_once] for start in range(0, len(pairs), heads_at_once)]
            taken = plain - torch.cat([_log_probabilities(gaze, inputs, answer, part) for part in parts])
            for kind in counts:
                for start, end in getattr(caption, kind):
                    chosen = tokens_of([Word(caption.answer[start:end], start, "")], offsets)
                    sums[kind] += taken[:, chosen].sum(1)
                    counts[kind] += 1
            report(1)
    means = {kind: (sums[kind] / counts[kind]).view(shape) for kind in counts}
    return Influence(**means)


def _with_answer(gaze: Gaze, caption: Caption) -> tuple[dict[str, Any], Tensor, list[Span]]:
    """Arguments of a forward over prompt and answer, the answer's ids [T], and their character offsets."""
    inputs = gaze.inputs([caption.image], [caption.question])
    encoded = gaze.reader.tokenizer(caption.answer, add_special_tokens=False, return_offsets_mapping=True)
    ids = inputs["input_ids"]
    answer = torch.tensor(encoded["input_ids"], dtype=ids.dtype, device=ids.device)
    forced = append_tokens(inputs, answer[None], torch.ones_like(answer[None], dtype=torch.bool))
    return forced, answer, encoded["offset_mapping"]


def _log_probabilities(
    gaze: Gaze, inputs: dict[str, Any], answer: Tensor, removed: Sequence[tuple[int, int] | None]
) -> Tensor:
    """[n, T] fp64 log-probability of each token of the answer, with a different head removed in each row."""
    copies: dict[str, Any] = {name: torch.cat([value] * len(removed)) for name, value in inputs.items()}
    if "logits_to_keep" in inspect.signature(gaze.model.forward).parameters:
        copies["logits_to_keep"] = len(answer) + 1
    with gaze.using(_HeadPerRow(removed)), torch.no_grad():
        logits = gaze.model(**copies).logits[:, -len(answer) - 1 : -1]
    chosen = answer[None, :, None].expand(len(removed), -1, 1).to(logits.device)
    return logits.double().log_softmax(-1).gather(-1, chosen)[..., 0].cpu()


class _HeadPerRow(Callback):
    """Removes one head in each row of the batch; None removes none."""

    def __init__(self, removed: Sequence[tuple[int, int] | None]):
        self.removed = removed

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        gain = torch.ones(len(self.removed), context.num_heads)
        for row, pair in enumerate(self.removed):
            if pair is not None and pair[0] == layer:
                gain[row, pair[1]] = 0.0
        return None if bool(gain.all()) else AttentionEdit(head_gain=gain.to(context.device))
