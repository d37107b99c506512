"""The answers of a run per item of a benchmark: collected from the journals, and read from answers.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regaze.eval.benchmarks.common.base import Benchmark
from regaze.eval.comparison.conditions import AnswerSet
from regaze.eval.cost import Cost
from regaze.eval.files import read_records
from regaze.eval.run.journal import Batch
from regaze.eval.run.requests import BenchmarkRequests
from regaze.eval.run.results import ANSWERS
from regaze.toolkit.prompts.thinking import Continued

#: The field of answers.jsonl with the tag by which the prompt opened the thinking of the answer.
OPENING = "prompt_opened"


def collect_answers(requests: BenchmarkRequests, batches: Sequence[Batch], opening: str = "") -> AnswerSet:
    """The answers to a benchmark under one condition.

    Of a request that was answered twice, the first answer counts.

    Args:
        opening: the tag of thinking in which the prompts end, see `Continued`.
    """
    answers: dict[str, str] = {}
    failures: dict[str, str] = {}
    costs, sharing = [], None
    for batch in batches:
        new = [key for key in batch.answers if key in requests.requests and key not in answers]
        answers.update((key, batch.answers[key]) for key in new)
        failures.update((key, reason) for key, reason in batch.errors.items() if key in requests.requests)
        if new:
            costs.append((batch.cost, len(new) / len(batch.answers)))
            sharing = batch.sharing
    errors = dict(requests.unreadable)
    for index, key in enumerate(requests.item_keys):
        if key is not None and key not in answers:
            errors[index] = failures.get(key, "it was not asked")
    for key, request in requests.requests.items():
        if key in answers and request.is_generated:
            answers[key] = Continued.of(answers[key], opening)
    per_item = tuple("" if key is None else answers.get(key, "") for key in requests.item_keys)
    return AnswerSet(per_item, errors, len(requests.requests), Cost.total(costs), sharing)


def answer_lengths(reader: Any, answers: AnswerSet) -> list[int]:
    """The numbers of tokens of the answers that are there; none where the model has no tokenizer.

    Args:
        reader: `gaze.reader`, or None.
    """
    tokenizer = getattr(reader, "tokenizer", None)
    if tokenizer is None:
        return []
    texts = [text for index, text in enumerate(answers.answers) if index not in answers.errors]
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def answer_rows(benchmark: Benchmark, label: str, answers: AnswerSet) -> list[dict[str, Any]]:
    """The lines of answers.jsonl for one benchmark and condition, one per item."""
    return [
        {
            "benchmark": benchmark.name,
            "condition": label,
            "key": item.key,
            "split": item.split,
            "image": item.image.name if item.image else None,
            **({"video": item.video.name} if item.video else {}),
            "prompt": benchmark.prompt(item),
            "label": item.label,
            **({OPENING: answer.opening} if isinstance(answer, Continued) else {}),
            **({"error": answers.errors[index]} if index in answers.errors else {"answer": answer}),
        }
        for index, (item, answer) in enumerate(zip(benchmark.items, answers.answers, strict=True))
    ]


def read_answers(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """{benchmark: {item key: {condition: answer}}} of a complete run; questions that failed are absent.

    Raises:
        InputError: answers.jsonl is missing or malformed.
    """
    answers: dict[str, dict[str, dict[str, str]]] = {}
    for _, row in read_records(folder / ANSWERS, controls=True):
        if "answer" in row:
            by_condition = answers.setdefault(row["benchmark"], {}).setdefault(row["key"], {})
            by_condition[row["condition"]] = Continued.of(row["answer"], row.get(OPENING, ""))
    return answers
