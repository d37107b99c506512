"""Prompts and tokens under methods that remove image tokens, beside hiding these tokens and plain decoding.

    python benchmarks/pruning.py [--quick] [--seconds S] [--output FILE.json]

Random LLaVAs with 576 image tokens, on a GPU of the size of LLaVA-1.5-7B. In each round every way generates
once one token and once all of them, in an order drawn anew; the difference over the number of tokens is the
cost of a token, the first the cost of the prompt. A ratio is the median over rounds of plain against a way in
the same round, with its quartiles: above 1 the way is faster. Answers of removing and hiding are compared,
and the size of the cache. On a CPU times are those of the processor, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import regaze
from regaze.demo import scenes
from regaze.demo.training.vocabulary import build_processor
from regaze.interventions import FastV, Intervention, PyramidDrop, SparseVLM

PROMPT = "Please describe this image in detail."
METHODS = (FastV(), FastV(dropped=0.75), SparseVLM(), PyramidDrop())


@dataclass(frozen=True)
class Shape:
    """A random LLaVA and its batch."""

    name: str
    hidden: int
    layers: int
    batch: int
    new: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


CPU = (Shape("LLaVA 12x512, B=1", 512, 12, 1, 24),)
GPU = tuple(
    Shape(f"LLaVA 32x4096, B={batch}", 4096, 32, batch, 64, torch.bfloat16, "cuda") for batch in (1, 8)
)


def build(shape: Shape) -> regaze.Gaze:
    processor = build_processor(336, 14)
    tokenizer = processor.tokenizer
    heads = shape.hidden // 128
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 43 // 16,  # as in a Llama 2 of 7 billion parameters
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        image_size=336, patch_size=14, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids(processor.image_token)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=image_token)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(shape.dtype)
    with torch.device(shape.device):
        model = LlavaForConditionalGeneration(config).eval()
    torch.set_default_dtype(default)
    return regaze.wrap(model, processor)


@dataclass
class Way:
    """Plain decoding, or a method, and what was measured of it."""

    name: str
    method: Intervention | None
    prompt: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)


def ways() -> list[Way]:
    found = [Way("plain", None)]
    for method in METHODS:
        name = f"{method.name} {setting(method)}".strip()
        found += [Way(name, method), Way(f"{name}, hidden", replace(method, remove=False))]
    return found


def setting(method: Any) -> str:
    """The parameters that say how many tokens stay."""
    if isinstance(method, FastV):
        return f"{method.dropped:.0%}"
    return f"{method.budget} of 576" if isinstance(method, SparseVLM) else ""


class Case:
    """A model and a batch of prompts."""

    def __init__(self, shape: Shape):
        self.shape, self.gaze = shape, build(shape)
        images = [scene.image() for scene in scenes()[: shape.batch]]
        inputs = self.gaze.inputs(images, [PROMPT] * shape.batch)
        self.inputs = {
            name: value.to(shape.device, shape.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def generate(self, method: Intervention | None, new: int) -> Any:
        block: Any = nullcontext() if method is None else self.gaze.using(method)
        with block, torch.inference_mode():
            out = self.gaze.model.generate(
                **self.inputs,
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                output_logits=True,
                return_dict_in_generate=True,
            )
        if self.shape.device == "cuda":
            torch.cuda.synchronize()
        return out

    def seconds(self, method: Intervention | None, new: int) -> float:
        clock = time.process_time if self.shape.device == "cpu" else time.perf_counter
        start = clock()
        self.generate(method, new)
        return clock() - start

    def checked(self, all_ways: list[Way]) -> dict[str, dict[str, float]]:
        """By way: how its logits differ from those of hiding the same tokens, and its cache beside plain's.

        Each answer is that of its own greedy tokens, up to the first at which two differ.
        """
        outs = {way.name: self.generate(way.method, self.shape.new) for way in all_ways}
        found: dict[str, dict[str, float]] = {}
        for way in all_ways:
            out, facts = outs[way.name], dict[str, float]()
            facts["cache_of_plain"] = round(_cached(out) / _cached(outs["plain"]), 3)
            other = outs.get(f"{way.name}, hidden")
            if other is not None:
                facts |= _difference(out, other)
            found[way.name] = facts
        return found


def _cached(out: Any) -> int:
    return sum(layer.keys.numel() + layer.values.numel() for layer in out.past_key_values.layers)


def _difference(out: Any, other: Any) -> dict[str, float]:
    """Share of tokens before the first difference, and the largest difference of logits before it."""
    one, two = (torch.stack(each.logits, 1).float() for each in (out, other))  # [B, T, V]
    new = one.shape[1]
    same: Tensor = (out.sequences[:, -new:] == other.sequences[:, -new:]).long().cumprod(1)
    alike = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], 1).bool()
    difference = (one - two).abs().amax(-1)[alike].max()
    return {
        "same_tokens": round(same.float().mean().item(), 4),
        "logits_differ": float(f"{difference:.2g}"),
        "logits_spread": round(two.std(-1).mean().item(), 3),
    }


def measure(shape: Shape, budget: float, say: Any) -> list[dict[str, Any]]:
    case, all_ways = Case(shape), ways()
    facts = case.checked(all_ways)  # also the warm-up
    started, rounds = time.perf_counter(), 0
    while rounds < 4 or (rounds < 40 and time.perf_counter() - started < budget):
        rounds += 1
        say(f"{shape.name}: round {rounds}")
        for way in random.sample(all_ways, len(all_ways)):
            short, whole = (case.seconds(way.method, new) for new in (1, shape.new))
            way.prompt.append(short)
            way.token.append((whole - short) / (shape.new - 1))
    plain, rows = all_ways[0], []
    for way in all_ways:
        row: dict[str, Any] = {"case": shape.name, "way": way.name, "batch": shape.batch, "rounds": rounds}
        row["ms_per_prompt"] = round(1e3 * statistics.median(way.prompt), 2)
        row["tokens_per_second"] = round(shape.batch / statistics.median(way.token), 1)
        for what in ("prompt", "token"):
            pairs = zip(getattr(plain, what), getattr(way, what), strict=True)
            low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
            row[f"{what}_times_faster"] = round(middle, 3)
            row[f"{what}_quartiles"] = [round(low, 3), round(high, 3)]
        rows.append({**row, **facts[way.name]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds; no figures to keep")
    parser.add_argument("--seconds", type=float, default=120.0, help="budget of each case")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    facts, console = machine(), Console(stderr=True)
    console.print(facts)
    rows = []
    with console.status("") as status:
        for shape in GPU if torch.cuda.is_available() else CPU:
            rows += measure(shape, 5.0 if options.quick else options.seconds, status.update)
    table = Table("case", "way", "prompt ms", "tokens/s", "x prompt", "x token", "cache", title="pruning")
    for row in rows:
        cells = (row["ms_per_prompt"], row["tokens_per_second"], row["prompt_times_faster"])
        cells += (row["token_times_faster"], row["cache_of_plain"])
        table.add_row(row["case"], row["way"], *map(str, cells))
    Console().print(table)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
