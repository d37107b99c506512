"""What analyses of a long prompt need: peak memory and time of flows, beside the attention they never store.

    python benchmarks/analysis.py --quick
    python benchmarks/analysis.py --json benchmarks/results/analysis.json

A random LLaVA reads a prompt of 4,096 tokens, 2,304 of which show an image. Each analysis runs in a process
of its own; its peak is that of the resident set above the start, so the plain forward of the first line is in
all of them. "All attention" is what `output_attentions` would hold: layers x heads x L x L weights in fp32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import PeakMemory, machine
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import regaze
from regaze import Role, TokenMap
from regaze.toolkit import analysis
from regaze.toolkit.analysis import Horizon, Inputs
from regaze.toolkit.analysis.forward import run_forward

LAYERS, HEADS, KV_HEADS, HIDDEN, PATCH, VOCABULARY = 8, 16, 4, 512, 14, 2000
IMAGE_TOKEN = VOCABULARY - 1
#: Tokens of a prompt, and the side of its image in pixels.
LONG, SHORT = (4096, 672), (1024, 336)
SYSTEM, ANSWER = 35, 256
#: Analyses that need seconds; the others also run with --quick.
SLOW = ("rollout, all rows and keys", "flow of VL-SAM, all rows and keys", "relevance")


def build(side: int) -> regaze.Gaze:
    """A random LLaVA for square images of `side` pixels."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=2 * LONG[0],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(side // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return regaze.wrap(LlavaForConditionalGeneration(config).eval().requires_grad_(False))


def prompt(tokens: int, side: int) -> Inputs:
    """System text, an image, a question and an answer."""
    ids = torch.randint(5, IMAGE_TOKEN, (1, tokens))
    image = slice(SYSTEM, SYSTEM + (side // PATCH) ** 2)
    ids[:, image] = IMAGE_TOKEN
    roles = torch.full((1, tokens), int(Role.QUERY), dtype=torch.uint8)
    roles[:, :SYSTEM], roles[:, image], roles[:, -ANSWER:] = Role.SYSTEM, Role.IMAGE, Role.OUTPUT
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Inputs({**inputs, "pixel_values": torch.randn(1, 3, side, side)}, TokenMap.from_roles(roles))


def ways() -> dict[str, Any]:
    """The analyses, each called with a wrapped model and inputs."""
    every: dict[str, Any] = {"rows": "all", "columns": "all"}
    return {
        "plain forward": lambda g, i: run_forward(g, i),
        "rollout, last row, image keys": lambda g, i: analysis.rollout(g, i),
        "rollout, all rows and keys": lambda g, i: analysis.rollout(g, i, **every),
        "flow of VL-SAM, last row, image keys": lambda g, i: analysis.attention_flow(g, i),
        "flow of VL-SAM, all rows and keys": lambda g, i: analysis.attention_flow(g, i, **every),
        "relevance": lambda g, i: analysis.relevance(g, i),
        "logit lens, all rows": lambda g, i: analysis.logit_lens(g, i),
        "rhythm of the answer": lambda g, i: analysis.rhythm(g, i, horizon=Horizon(low=10, high=100)),
        "key importance": lambda g, i: analysis.key_importance(g, i),
    }


def measure(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Seconds and peak MiB of one analysis in this process."""
    gaze, inputs = build(size[1]), prompt(*size)
    short = {"input_ids": torch.randint(5, IMAGE_TOKEN, (1, 64))}
    with torch.no_grad():
        gaze.model(**short, use_cache=False)  # what torch allocates once
    with PeakMemory() as peak:
        start = time.perf_counter()
        with torch.no_grad():
            ways()[name](gaze, inputs)
        seconds = time.perf_counter() - start
    return {"way": name, "seconds": round(seconds, 2), "peak_mib": round(peak.mib, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,024 tokens, and nothing that takes long")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = SHORT if arguments.quick else LONG
    if arguments.one:
        print(json.dumps(measure(arguments.one, size)))
        return
    facts, rows, tokens = machine(), [], size[0]
    stored = LAYERS * HEADS * tokens * tokens * 4 / 2**20
    print(f"{facts}\n\n{tokens} tokens, {LAYERS} layers, {HEADS} heads: all attention is {stored:,.0f} MiB\n")
    print("| analysis | seconds | peak MiB | of all attention |\n| --- | ---: | ---: | ---: |")
    for name in ways():
        if arguments.quick and name in SLOW:
            continue
        command = [sys.executable, __file__, "--one", name, *["--quick"] * arguments.quick]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        peak = rows[-1]["peak_mib"]
        print(f"| {name} | {rows[-1]['seconds']} | {peak:.0f} | {peak / stored:.1%} |", flush=True)
    if arguments.json:
        shape = {"tokens": tokens, "image_tokens": (size[1] // PATCH) ** 2, "layers": LAYERS, "heads": HEADS}
        result = {"machine": facts, "model": shape, "all_attention_mib": stored, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
