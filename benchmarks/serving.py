"""Questions per second of the demo POPE: inside vLLM, plain and edited, and under transformers.

    python benchmarks/serving.py [--quick] [--limit N] [--rounds N] [--output FILE.json]

It runs in an environment with vLLM (`make test-vllm` makes .venv-vllm): an engine in this process, beside the
model of transformers, each with one thread. Every way answers the same questions by the code of `regaze
evaluate`, from the files of images to texts, interleaved in an order drawn anew each round, with nothing kept
of earlier passes: no prefixes, no images, no questions. Questions per second are the median over rounds with
their range; a ratio is the median over rounds of two ways in the same round, above 1 where the first is
faster.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

# Read when vLLM is imported: an engine in this process, and as few threads as the model of transformers has.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from machine import machine
from rich.console import Console
from rich.table import Table

import regaze
from regaze.eval import EvalConfig, Pope, VLLMEngine
from regaze.eval.run.engines import TransformersEngine
from regaze.eval.run.requests import AnswerRequest, Condition, ImageHashes, build_requests
from regaze.interventions import registry
from regaze.serving.common.release import installed_release
from regaze.serving.common.support import REFUSED

SERVED, BATCHES, SHARED = "vLLM", "transformers, batches of 16", "transformers, shared prefixes"
#: What is asked for, of the questions per second of the plain model inside vLLM.
GOALS = {"knockout": 0.9, "pai": 0.9, "var": 0.6}
#: How questions are answered: none ends earlier, so that a method with longer answers does the same work.
FOUR_TOKENS = {"max_new_tokens": 4, "min_new_tokens": 4}
#: Methods with parameters that change answers of the demo, by what the table calls them.
METHODS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "knockout": {"method": "knockout", "heads": [[0, 0], [0, 3]]},
    "pai": {"method": "pai", "gamma": 1.0, "alpha": 0.8},
    "pai, guided": {"method": "pai", "alpha": 0.8},
    "var": {"method": "var", "rho": 0.2},
    "vcd": {"method": "vcd"},
}


def conditions() -> dict[str, Any]:
    """The methods that an engine runs, by name."""
    return {
        name: None if values is None else registry.method_from_dict(values)
        for name, values in METHODS.items()
        if values is None or values["method"] not in REFUSED
    }


class Ways:
    """The ways of answering, each with its engine of a run."""

    def __init__(self, limit: int):
        self.served = VLLMEngine("demo", max_model_len=512, block_size=32, limit_mm_per_prompt={"image": 1})
        _ = self.served.offline.llm  # starts here
        torch.set_num_threads(1)
        self.transformers = TransformersEngine(regaze.wrap(*regaze.load("demo")))
        self.benchmark = Pope.of_demo(limit=limit)

    def requests(self, method: Any) -> list[AnswerRequest]:
        asked = build_requests(self.benchmark, Condition("demo", method, {}, 0), ImageHashes())
        return list(asked.requests.values())

    def answer(self, way: str, method: Any, requests: list[AnswerRequest]) -> tuple[dict[str, str], float]:
        """(answers, seconds) of one pass."""
        if way == SERVED:
            self.forget()
        engine: Any = self.served if way == SERVED else self.transformers
        condition = Condition("demo", method, FOUR_TOKENS, 0)
        generator = engine.generator(condition, EvalConfig(share_prefix=way != BATCHES))
        found: dict[str, str] = {}
        began = time.perf_counter()
        for part in generator.answer_all(requests):
            if part.errors:
                raise RuntimeError(f"{way}: {part.errors}")
            found.update(part.answers)
        return found, time.perf_counter() - began

    def forget(self) -> None:
        """Empty what the engine keeps of earlier passes: prefixes, images, what regaze found of questions."""
        llm = self.served.offline.llm
        llm.reset_prefix_cache()
        llm.reset_mm_cache()
        admission = vars(llm.llm_engine.input_processor).get("_regaze_admission")
        if admission is not None:
            admission.forget()
        runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
        vars(runner)["_regaze_edits"].forget()


def measure(limit: int, rounds: int) -> list[dict[str, Any]]:
    ways, methods, console = Ways(limit), conditions(), Console(stderr=True)
    passes = [
        (name, way)
        for name, method in methods.items()
        for way in (SERVED, BATCHES, SHARED)
        if way != SHARED or method is None or method.shares_prefix
    ]
    asked = {name: ways.requests(method) for name, method in methods.items()}
    answers: dict[tuple[str, str], dict[str, str]] = {}
    seconds: dict[tuple[str, str], list[float]] = {each: [] for each in passes}
    for name, way in passes:  # the warm-up
        ways.answer(way, methods[name], asked[name][:32])
    for number in range(rounds):
        for name, way in random.sample(passes, len(passes)):
            console.print(f"round {number + 1} of {rounds}: {name}, {way}", markup=False)
            answers[name, way], taken = ways.answer(way, methods[name], asked[name])
            seconds[name, way].append(taken)
    return [row(each, seconds, answers, len(asked[each[0]])) for each in passes]


def row(
    which: tuple[str, str],
    seconds: dict[tuple[str, str], list[float]],
    answers: dict[tuple[str, str], dict[str, str]],
    prompts: int,
) -> dict[str, Any]:
    """What one way says about one condition."""
    name, way = which

    def faster_than(other: tuple[str, str]) -> float | None:
        if other not in seconds or other == which:
            return None
        pairs = zip(seconds[other], seconds[which], strict=True)
        return round(statistics.median(theirs / ours for theirs, ours in pairs), 2)

    rates = sorted(prompts / taken for taken in seconds[which])
    theirs = answers[name, BATCHES]
    return {
        "condition": name,
        "way": way,
        "prompts": prompts,
        "per_second": round(statistics.median(rates), 1),
        "per_second_range": [round(rates[0], 1), round(rates[-1], 1)],
        "of_plain": faster_than(("plain", SERVED)) if way == SERVED else None,
        "goal": GOALS.get(name) if way == SERVED else None,
        "of_batches": faster_than((name, BATCHES)),
        "of_shared": faster_than((name, SHARED)),
        "answers_that_differ": sum(theirs[key] != text for key, text in answers[which].items()),
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("condition", "way", "questions/s", "x plain vLLM", "x batches", "x shared", "differ")
    for each in rows:
        low, high = each["per_second_range"]
        ratios = (each["of_plain"], each["of_batches"], each["of_shared"])
        table.add_row(
            each["condition"],
            each["way"],
            f"{each['per_second']:.1f} ({low:.1f}-{high:.1f})",
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            str(each["answers_that_differ"]),
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=100, help="questions of each split")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="30 questions of each split, two rounds")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    limit, rounds = (30, 2) if given.quick else (given.limit, given.rounds)
    facts = {**machine(), "vllm": installed_release()}
    rows = measure(limit, rounds)
    facts["threads"] = torch.get_num_threads()
    print(json.dumps(facts))
    show(rows)
    if given.output:
        given.output.write_text(
            json.dumps({"machine": facts, "rounds": rounds, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
