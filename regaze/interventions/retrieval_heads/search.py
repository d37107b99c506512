"""`find_retrieval_heads`: record what each head attends to while a model answers from long contexts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from regaze.errors import InputError
from regaze.interventions.retrieval_heads.cached_prompt import CachedPrompt
from regaze.interventions.retrieval_heads.copying import count_copies
from regaze.interventions.retrieval_heads.head_files import TrialEntry
from regaze.interventions.retrieval_heads.head_scores import RetrievalHeads, Trial
from regaze.interventions.retrieval_heads.needle_test import NeedleTest
from regaze.interventions.retrieval_heads.needles import Needle
from regaze.interventions.retrieval_heads.prompt_builder import TEMPLATE, NeedlePrompt
from regaze.interventions.retrieval_heads.trial_log import TrialLog
from regaze.progress import Progress, reporting
from regaze.reading import StrPath
from regaze.toolkit.model import compat


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
    log: StrPath | None = None,
    progress: Progress | bool | None = None,
) -> RetrievalHeads:
    """Score every head by how often it attends most to the needle's token that the model copies.

    Source: Wu et al. (arXiv:2404.15574), section 2. For every needle, length and depth the model answers
    greedily from a long text. At every step each layer records the strongest column of its single row, so
    that memory grows with the length of the context, not with its square. Trials whose response contains more
    than `min_recall` of the answer's words count; a head's score is its mean over them.

    Unlike in the release, the needle's span is known exactly (there the match may start early), needles are
    inserted at the end of a sentence with any tokenizer (there at hard-coded Llama ids), no second BOS is
    added, and the question and a cue may surround the text. See docs/guide/retrieval-heads.md.

    Args:
        model: a causal language model, or the multimodal one around it (the prompts have no image).
        tokenizer: its fast tokenizer, or its processor.
        haystack: a text to hide needles in, or one per needle (used in turn).
        needles: what to hide, such as `NEEDLES`.
        lengths: exact numbers of tokens of the whole prompt, template included.
        depths: percent of the haystack before the needle.
        template: the user's message, with {context} once and {question} at least once.
        max_new_tokens: longest answer; it ends earlier at a newline or an end-of-sequence token.
        min_recall: share of the answer's words, in 0..1, that a successful response exceeds.
        name: of the model, for the file. Default: the last part of the name or folder it was loaded from.
        log: path of a JSON-lines file with one trial per line; trials in it are not run again.
        progress: called with ("trials", done, total). None: a bar where one
            is seen (a terminal, a notebook); True: always; False: never.

    Raises:
        BadParameterError: invalid lengths, depths or template, or ones that do not fit the model.
        InputError: unusable texts or files, or no trial succeeded.
    """
    options: dict[str, Any] = {"template": template, "max_new_tokens": max_new_tokens}
    test = NeedleTest(model, tokenizer, haystack, needles, lengths, depths, **options)
    with TrialLog(log) as trial_log, reporting(progress) as report:
        entries = list(_run(test, trial_log, report))
    found = _successful(entries, min_recall)
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


def _successful(entries: Sequence[dict[str, Any]], min_recall: float) -> list[Trial]:
    """The trials with enough of the answer's words; InputError where there is none."""
    found = [Trial.from_dict(entry) for entry in entries if entry["recall"] > min_recall]
    if not found:
        best = max(entries, key=lambda entry: float(entry["recall"]))
        raise InputError(
            f"none of {len(entries)} trials succeeded, so there is nothing to score: the best response has "
            f"{best['recall']:.0%} of the answer's words, more than {min_recall:.0%} are needed; at length "
            f"{best['length']} it is {best['response'][:80]!r}. Try shorter lengths, or needles with a cue"
        )
    return found


def _run(test: NeedleTest, log: TrialLog, progress: Progress) -> Iterator[dict[str, Any]]:
    progress("trials", 0, len(test.grid))
    for done, prompt in enumerate(test.prompts(), start=1):
        yield log.get_or_run(test.key(prompt), partial(_trial, test, prompt), TrialEntry)
        progress("trials", done, len(test.grid))


def _trial(test: NeedleTest, prompt: NeedlePrompt) -> dict[str, Any]:
    """One answer, and what each head copied for it."""
    with test.gaze.recording(masses=False, top1=True) as record:
        output = CachedPrompt(test.model, prompt.ids).answer(test.max_new_tokens, test.stops)
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
