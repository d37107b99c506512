"""Seconds per generated token of every method beside plain decoding, and beside two separate forwards.

    python benchmarks/methods.py [--quick] [--seconds S] [--only NAME,...] [--output FILE.json]

Two models: the demo model, and a random LLaVA of hidden size 1,024 with 16 layers. In each round every way
generates once one token and once all of them, in an order drawn anew; the difference over the number of
tokens is the cost of a token, the first the cost of the prompt. A ratio is the median over rounds of a way
against plain in the same round, with its quartiles. The operations of a prompt are counted once: those of
matrix products and attention, the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import regaze
from regaze.demo import scenes
from regaze.errors import BadParameterError, RegazeError
from regaze.interventions import Intervention, MultiPassMethod
from regaze.interventions.fitting.base import FittedIntervention
from regaze.interventions.registry import BUILT_IN, create_method, method_class

PROMPT = "Please describe this image in detail."
TWO_FORWARDS = "two separate forwards"
#: What a random model needs, so that a method edits something in it.
PARAMETERS: dict[str, dict[str, Any]] = {
    "var": {"sink_dimensions": (3, 7), "tau": 2.5, "rho": 0.0, "min_image_mass": 0.0}
}


def given(name: str, gaze: regaze.Gaze) -> dict[str, Any]:
    """What a user has to give to a method: a small fit on this model, or the demo's detector."""
    cls: Any = method_class(name)
    if issubclass(cls, FittedIntervention):
        few = cls.fit(pairs=max(cls.fit.least, 8))
        return {"directions": few.run(gaze, cls.fit.demo())}
    return {"detector": "demo"} if "detector" in cls.facts.needs else {}


class Case:
    """A model and one batch of prompts."""

    def __init__(self, name: str, gaze: regaze.Gaze, batch: int, new: int, random: bool = False):
        self.name, self.gaze, self.batch, self.new, self.random = name, gaze, batch, new, random
        images = [scene.image() for scene in scenes()[:batch]]
        self.inputs = gaze.inputs(images, [PROMPT] * batch)

    def generate(self, method: Intervention | None, new: int) -> None:
        block: Any = nullcontext() if method is None else self.gaze.using(method)
        with block, torch.inference_mode():
            self.gaze.model.generate(**self.inputs, max_new_tokens=new, do_sample=False, eos_token_id=None)

    def two_forwards(self, new: int) -> None:
        """Contrastive decoding as the releases do it: two prompts, two caches, two forwards a token."""
        other = {**self.inputs, "pixel_values": self.inputs["pixel_values"] * 0.5}
        model = self.gaze.model
        mask = self.inputs["attention_mask"]
        with torch.inference_mode():
            outs = [model(**each, use_cache=True, logits_to_keep=1) for each in (self.inputs, other)]
            for _ in range(new - 1):
                token = (2 * outs[0].logits - outs[1].logits)[:, -1].argmax(-1, keepdim=True)
                mask = torch.cat([mask, torch.ones_like(token)], 1)
                outs = [
                    model(
                        input_ids=token,
                        attention_mask=mask,
                        past_key_values=out.past_key_values,
                        use_cache=True,
                    )
                    for out in outs
                ]

    def ways(self, only: set[str] | None) -> dict[str, Callable[[int], None]]:
        ways: dict[str, Callable[[int], None]] = {"plain": lambda new: self.generate(None, new)}
        for name in BUILT_IN:
            if only is None or name in only:
                parameters = PARAMETERS.get(name, {}) if self.random else {}
                method: Any = create_method(name, **parameters, **given(name, self.gaze))
                if method.is_identity:
                    continue
                try:
                    if isinstance(method, MultiPassMethod):
                        raise BadParameterError("it answers several times, and has no cost per token")
                    self.generate(method, 2)  # also the warm-up
                except RegazeError as error:
                    Console(stderr=True).print(f"{self.name}: {name} left out: {error}", markup=False)
                    continue
                ways[name] = lambda new, method=method: self.generate(method, new)
        ways[TWO_FORWARDS] = self.two_forwards
        return ways


def demo_gaze() -> regaze.Gaze:
    return regaze.wrap(*regaze.load("demo", dtype=torch.float32))


def wide_gaze() -> regaze.Gaze:
    """A random LLaVA of hidden size 1,024 with 16 layers of 16 heads, 64 image tokens."""
    torch.manual_seed(0)
    _, processor = regaze.load("demo")
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    size = processor.image_processor.size["shortest_edge"]
    vision = CLIPVisionConfig(
        image_size=size, patch_size=14, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4,
    )  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids(processor.image_token)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=image_token)
    return regaze.wrap(LlavaForConditionalGeneration(config).eval(), processor)


def measure(
    case: Case, budget: float, only: set[str] | None, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    ways = case.ways(only)
    case.two_forwards(2)
    first: dict[str, list[float]] = {way: [] for way in ways}
    token: dict[str, list[float]] = {way: [] for way in ways}
    started = time.perf_counter()
    while (done := len(first["plain"])) < 5 or (done < 40 and time.perf_counter() - started < budget):
        say(f"{case.name}: round {done + 1}")
        for way in random.sample(list(ways), len(ways)):
            short, whole = (_seconds(ways[way], new) for new in (1, case.new))
            first[way].append(short)
            token[way].append((whole - short) / (case.new - 1))
    rows = []
    operations = {way: _operations(run) for way, run in ways.items()}
    for way in ways:
        row: dict[str, Any] = {"case": case.name, "way": way, "batch": case.batch, "rounds": len(first[way])}
        row["ms_per_token"] = round(1e3 * statistics.median(token[way]), 3)
        for what, seconds in (("token", token), ("prompt", first)):
            low, middle, high = statistics.quantiles(
                [a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)], n=4
            )
            row[f"{what}_ratio"] = round(middle, 3)
            row[f"{what}_quartiles"] = [round(low, 3), round(high, 3)]
        row["prompt_operations_ratio"] = round(operations[way] / operations["plain"], 3)
        rows.append(row)
    return rows


def _operations(way: Callable[[int], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        way(1)
    return counter.get_total_flops()


def _seconds(way: Callable[[int], None], new: int) -> float:
    start = time.perf_counter()
    way(new)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds; no figures to keep")
    parser.add_argument("--seconds", type=float, default=120.0, help="budget of each case")
    parser.add_argument("--only", help="names of methods, with commas")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    facts = machine()
    console = Console(stderr=True)
    console.print(facts)
    only = set(options.only.split(",")) if options.only else None
    budget = 5.0 if options.quick else options.seconds
    cases = [
        Case("demo model, B=1", demo_gaze(), 1, 48),
        Case("demo model, B=8", demo_gaze(), 8, 48),
        Case("LLaVA 16x1024, B=1", wide_gaze(), 1, 16, random=True),
    ]
    rows = []
    with console.status("") as status:
        for case in cases:
            rows += measure(case, budget, only, status.update)
    table = Table(
        "case", "way", "ms/token", "x plain (quartiles)", "prompt, x plain", "its operations", title="methods"
    )
    for row in rows:
        low, high = row["token_quartiles"]
        ratio = f"{row['token_ratio']:.2f} ({low:.2f}-{high:.2f})"
        table.add_row(
            *(row["case"], row["way"], f"{row['ms_per_token']:.2f}", ratio),
            *(f"{row[name]:.2f}" for name in ("prompt_ratio", "prompt_operations_ratio")),
        )
    Console().print(table)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
