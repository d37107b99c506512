"""`find_retrieval_heads`: let a model answer from long contexts and watch which heads fetch the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from regaze.errors import BadParameterError, InputError
from regaze.interventions.retrieval_heads.greedy import LongPrompt, stop_tokens
from regaze.interventions.retrieval_heads.headfile import RetrievalHeads, Trial
from regaze.interventions.retrieval_heads.log import TrialLog, fingerprint, key_of
from regaze.interventions.retrieval_heads.needles import (
    TEMPLATE,
    Needle,
    NeedlePrompt,
    PromptBuilder,
    unigram_recall,
)
from regaze.interventions.retrieval_heads.scores import count_copies
from regaze.toolkit import Gaze, wrap
from regaze.toolkit.model import compat

#: called with what is going on, how much of it is done, and of how much
Progress = Callable[[str, int, int], None]


class NeedleTest:
    """A model, and the prompts that hide needles from it: what finding heads and ablating them share.

    Arguments and errors are those of `find_retrieval_heads`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        haystack: str | Sequence[str],
        needles: Sequence[Needle],
        lengths: Sequence[int],
        depths: Sequence[float],
        *,
        template: str = TEMPLATE,
        max_new_tokens: int = 50,
    ):
        if not lengths or not depths or max_new_tokens < 1:
            raise BadParameterError("needle tests need at least one length, one depth and one new token")
        limit = getattr(compat.text_config(model), "max_position_embeddings", None)
        if limit is not None and max(lengths) + max_new_tokens > limit:
            raise BadParameterError(
                f"a prompt of {max(lengths)} tokens and an answer of {max_new_tokens} do not fit into the "
                f"model's context of {limit}"
            )
        self.gaze: Gaze = wrap(model, tokenizer)
        self.model, self.tokenizer = model, self.gaze.reader.tokenizer
        haystacks = [haystack] if isinstance(haystack, str) else list(haystack)
        self.builder = PromptBuilder(self.gaze.reader, haystacks, needles, template)
        self.needles, self.max_new_tokens = tuple(needles), max_new_tokens
        self.stops = stop_tokens(model, self.tokenizer)
        self.grid = list(product(lengths, range(len(needles)), depths))
        for number, depth in product(range(len(needles)), depths):  # what is too short should say so now
            self.builder.build(number, min(lengths), depth)
        self._model, self._texts = fingerprint(model), [key_of(text) for text in haystacks]

    def prompts(self) -> Iterator[NeedlePrompt]:
        """The prompt of each cell of the grid, made when it is its turn."""
        return (self.builder.build(number, length, depth) for length, number, depth in self.grid)

    def key(self, prompt: NeedlePrompt, *more: Any) -> str:
        """A key for the log: the prompt's very tokens stand for haystack, needle, template and tokenizer."""
        answer = self.needles[prompt.number].answer
        run = [self._model, self.max_new_tokens, sorted(self.stops)]
        return key_of(run, prompt.ids, prompt.span, answer, more)

    def judge(self, prompt: NeedlePrompt, output: Sequence[int]) -> tuple[str, float]:
        """The response as text, and how much of the answer it has (0..1)."""
        response = self.tokenizer.decode(output, skip_special_tokens=True).strip()
        return response, unigram_recall(self.needles[prompt.number].answer, response)

    def about(self) -> dict[str, Any]:
        """How the trials are run, for a file."""
        lengths, numbers, depths = (sorted(set(values)) for values in zip(*self.grid, strict=True))
        return {
            "lengths": lengths,
            "depths": depths,
            "needles": [asdict(self.needles[number]) for number in numbers],
            "max_new_tokens": self.max_new_tokens,
            "hash of model": self._model,
            "hashes of haystacks": self._texts,
        }


def find_retrieval_heads(
    model: PreTrainedModel,
    tokenizer: Any,
    haystack: str | Sequence[str],
    needles: Sequence[Needle],
    lengths: Sequence[int],
    depths: Sequence[float],
    *,
    template: str = TEMPLATE,
    max_new_tokens: int = 50,
    min_recall: float = 0.5,
    name: str | None = None,
    log: str | Path | None = None,
    progress: Progress | None = None,
) -> RetrievalHeads:
    """Score every head by how often it looks at the needle's token that the model is just copying.

    Source: Wu et al. (arXiv:2404.15574), section 2. For every needle, length and depth the model answers
    greedily from a long text. Of every step each layer reports the strongest column of its single row, so
    memory grows with the length of the context, not with its square. Trials whose response has more than
    `min_recall` of the answer's words count; a head's score is its mean over them.

    Against the release: the needle's span is known exactly (there the match may start early), needles go to
    the end of a sentence in any language's tokens (there hard-coded Llama ids), nothing adds a second BOS,
    and the question and a cue may surround the text. See docs/retrieval-heads.md.

    Args:
        model: a causal language model, or the multimodal one around it (the prompts have no image).
        tokenizer: its fast tokenizer, or its processor.
        haystack: a text to hide needles in, or one per needle (used in turn).
        needles: what to hide, such as `NEEDLES`.
        lengths: tokens of the whole prompt, template included; exact.
        depths: percent of the haystack before the needle.
        template: the user's message, with {context} once and {question} at least once.
        max_new_tokens: longest answer; it ends earlier at a newline or an end-of-sequence token.
        min_recall: the least part of the answer's words that a successful response exceeds, in 0..1.
        name: of the model, for the file. Default: the last part of the name or folder it was loaded from.
        log: JSON lines, a trial each. Trials that are in it already are not run again.
        progress: called with ("trials", done, total).

    Raises:
        BadParameterError: lengths, depths or a template that make no sense or do not fit the model.
        InputError: unusable texts or files, or no trial succeeded.
    """
    test = NeedleTest(
        model,
        tokenizer,
        haystack,
        needles,
        lengths,
        depths,
        template=template,
        max_new_tokens=max_new_tokens,
    )
    with TrialLog(log) as known:
        entries = list(_run(test, known, progress or (lambda what, done, total: None)))
    found = [Trial.from_dict(entry) for entry in entries if entry["recall"] > min_recall]
    if not found:
        best = max(entries, key=lambda entry: float(entry["recall"]))
        raise InputError(
            f"none of {len(entries)} trials succeeded, so there is nothing to score: the best response has "
            f"{best['recall']:.0%} of the answer's words, more than {min_recall:.0%} are needed; at length "
            f"{best['length']} it is {best['response'][:80]!r}. Try shorter lengths, or needles with a cue"
        )
    config = compat.text_config(model)
    about = {
        "model": name or Path(compat.model_name(model) or type(model).__name__).name,
        **test.about(),
        "template": template,
        "min_recall": min_recall,
        "trials_run": len(entries),
        "trials_succeeded": len(found),
    }
    return RetrievalHeads.from_trials(found, (config.num_hidden_layers, config.num_attention_heads), about)


def _run(test: NeedleTest, log: TrialLog, progress: Progress) -> Iterator[dict[str, Any]]:
    progress("trials", 0, len(test.grid))
    for done, prompt in enumerate(test.prompts(), start=1):
        yield log.get(test.key(prompt), partial(_trial, test, prompt))
        progress("trials", done, len(test.grid))


def _trial(test: NeedleTest, prompt: NeedlePrompt) -> dict[str, Any]:
    """One answer, and what each head copied for it."""
    with test.gaze.recording(masses=False, top1=True) as record:
        output = LongPrompt(test.model, prompt.ids).answer(test.max_new_tokens, test.stops)
    trace = record[0]
    columns = trace.require("top_column")[:, 0, :, 1:].permute(2, 0, 1).long()  # row 0 is the prefill's
    copied = count_copies(columns, output, prompt.ids, prompt.span)
    response, recall = test.judge(prompt, output)
    heads = {
        (trace.layers[row], head): (int(copied.kinds[row, head]), int(copied.steps[row, head]))
        for row, head in copied.steps.nonzero().tolist()
    }
    return Trial(
        needle=prompt.number,
        length=len(prompt.ids),
        depth=prompt.depth,
        span=prompt.span,
        recall=recall,
        response=response,
        kinds=copied.needle_kinds,
        copied=heads,
    ).to_dict()
