"""Seconds and prompt tokens of the demo POPE: a question at a time, in batches, and with shared prefixes.

    python benchmarks/evaluate.py [--limit N] [--rounds N] [--output FILE.json]

Every way answers the same questions (a prompt that several splits ask is asked once, by every way),
interleaved in an order drawn anew each round. A time is the median over rounds with its range, a ratio the
median over rounds of a way against batches without sharing in the same round. Prompt tokens are positions run
before the first new token, padding included.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import machine
from rich.console import Console
from rich.table import Table

import regaze
from regaze import HeadKnockout
from regaze.eval import Pope
from regaze.eval.run.generate import AnswerGenerator
from regaze.eval.run.requests import AnswerRequest, Condition, ImageHashes, build_requests

BATCH = 16
BATCHES = f"batches of {BATCH}"
#: one head that matters, so that the answers are others than the plain model's
METHODS = {"plain": None, "knockout": HeadKnockout(heads=((0, 0),))}


@dataclass(frozen=True)
class Way:
    """How questions are put: so many at once, with shared prefixes or without."""

    name: str
    batch: int
    share: bool


WAYS = (
    Way("one at a time", 1, False),
    Way(BATCHES, BATCH, False),
    Way(f"{BATCHES}, shared prefixes", BATCH, True),
)


def answer(
    gaze: Any, method: Any, way: Way, requests: list[AnswerRequest]
) -> tuple[dict[str, str], int, float]:
    """(answers, prompt tokens, seconds) of one pass, planning and checking included."""
    condition = Condition("demo", method, {"max_new_tokens": 4}, 0)
    generator = AnswerGenerator(gaze, condition, batch_size=way.batch, share_prefix=way.share)
    found: dict[str, str] = {}
    tokens, began = 0, time.perf_counter()
    for batch in generator.make_batches(requests):
        for part in generator.answer(batch):
            if part.errors:
                raise RuntimeError(f"{way.name}: {part.errors}")
            found.update(part.answers)
            tokens += part.cost.prefill_tokens
    if way.share and generator.sharing.obstacle:
        raise RuntimeError(f"nothing was shared: {generator.sharing.obstacle}")
    return found, tokens, time.perf_counter() - began


def measure(limit: int | None, rounds: int) -> list[dict[str, Any]]:
    gaze, console = regaze.wrap(*regaze.load("demo")), Console(stderr=True)
    benchmark, rows = Pope.of_demo(limit=limit), []
    for label, method in METHODS.items():
        asked = build_requests(benchmark, Condition("demo", method, {}, 0), ImageHashes())
        requests = list(asked.requests.values())
        answers: dict[str, dict[str, str]] = {}
        tokens: dict[str, int] = {}
        seconds: dict[str, list[float]] = {way.name: [] for way in WAYS}
        for way in WAYS:  # the warm-up
            answer(gaze, method, way, requests[: 2 * BATCH])
        for number in range(rounds):
            for way in random.sample(WAYS, len(WAYS)):
                console.print(f"{label}, round {number + 1} of {rounds}: {way.name}", markup=False)
                answers[way.name], tokens[way.name], taken = answer(gaze, method, way, requests)
                seconds[way.name].append(taken)
        for way in WAYS:
            ratios = [a / b for a, b in zip(seconds[way.name], seconds[BATCHES], strict=True)]
            rows.append(
                {
                    "condition": label,
                    "way": way.name,
                    "questions": len(benchmark.items),
                    "prompts": len(requests),
                    "prompt_tokens": tokens[way.name],
                    "tokens_ratio": round(tokens[BATCHES] / tokens[way.name], 2),
                    "seconds": round(statistics.median(seconds[way.name]), 2),
                    "seconds_range": [round(min(seconds[way.name]), 2), round(max(seconds[way.name]), 2)],
                    "times_faster": round(1 / statistics.median(ratios), 2),
                    "answers_that_differ": sum(
                        answers[way.name][key] != text for key, text in answers[BATCHES].items()
                    ),
                }
            )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("condition", "way", "prompt tokens", "fewer", "seconds", "faster", "answers that differ")
    for row in rows:
        low, high = row["seconds_range"]
        table.add_row(
            row["condition"],
            row["way"],
            str(row["prompt_tokens"]),
            f"{row['tokens_ratio']:.2f}x",
            f"{row['seconds']:.1f} ({low:.1f}-{high:.1f})",
            f"{row['times_faster']:.2f}x",
            str(row["answers_that_differ"]),
        )
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, help="only the first N questions of each split")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine()
    rows = measure(given.limit, given.rounds)
    show(rows)
    if given.output:
        given.output.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
