"""What wrapping, editing and recording cost: tokens per second and peak memory beside the unmodified model.

    python benchmarks/overhead.py [--quick] [--seconds S] [--output benchmarks/results/overhead.json]

Five ways to generate the same number of tokens, interleaved in one process in an order drawn anew each round:
plain SDPA, wrapped and idle, VAR, recording masses, and eager attention with output_attentions. A ratio is
the median over rounds of (time of the way / time of plain in the same round), given with the quartiles; 1.00
is the speed of the plain model.

Edited and measured decode steps go through Numba where it is installed (`pip install 'regaze[cpu]'`), else
through torch; REGAZE_BACKEND=torch measures torch where both are there. Each row says which it was.
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
from unittest import mock

import torch
from machine import PeakMemory, machine
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import regaze
from regaze import VAR, Role, TokenMap
from regaze.demo import scenes
from regaze.kernels import BACKENDS

WAYS = ("plain", "idle", "var", "recording", "eager")
#: Ways whose steps go through a backend of regaze.
EDITED = ("var", "recording")


class Case:
    """A model, its inputs, and how to generate under each way; `goal` is the ratio to reach under an edit."""

    def __init__(
        self,
        name: str,
        model: Any,
        gaze: regaze.Gaze,
        inputs: Any,
        var: VAR,
        tokens: TokenMap | None,
        new: int,
        goal: float,
    ):
        self.name, self.model, self.gaze, self.inputs = name, model, gaze, inputs
        self.var, self.tokens, self.new = var, tokens, new
        self.batch, self.prompt = inputs["input_ids"].shape
        self.goals = {"idle": 1.02, **dict.fromkeys(EDITED, goal)}

    def run(self, way: str) -> None:
        gaze, extra = self.gaze, {}
        block: Any = nullcontext()
        if way == "idle":
            block = gaze.using()
        elif way == "var":
            block = gaze.using(self.var, tokens=self.tokens)
        elif way == "recording":
            block = gaze.recording(tokens=self.tokens)
        elif way == "eager":
            self.model.set_attn_implementation("eager")
            extra = {"output_attentions": True, "return_dict_in_generate": True}
        try:
            with block, torch.inference_mode():
                self.model.generate(
                    **self.inputs, max_new_tokens=self.new, do_sample=False, eos_token_id=None, **extra
                )
        finally:
            if way == "eager":
                self.model.set_attn_implementation("sdpa")


def demo_case(batch: int, new: int) -> Case:
    model, processor = regaze.load("demo", dtype=torch.float32)
    gaze = regaze.wrap(model, processor)
    images = [scene.image() for scene in scenes()[:batch]]
    inputs = gaze.inputs(images, ["Please describe this image in detail."] * batch)
    return Case(f"demo model, B={batch}", model, gaze, inputs, VAR(), None, new, 1.10)


def llama_case(batch: int, prompt: int, new: int) -> Case:
    """Six random layers of hidden size 512; as with LLaVA, the prompt is image but for some dozen tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(5, 4096, (batch, prompt))
    roles = torch.full((batch, prompt), int(Role.QUERY))
    roles[:, :35], roles[:, 35 : prompt - 64] = Role.SYSTEM, Role.IMAGE
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    var = VAR(sink_dimensions=(3, 7), tau=2.5, rho=0.0, min_image_mass=0.0)
    name = f"Llama 6x512, prompt {prompt}, B={batch}"
    return Case(name, model, regaze.wrap(model), inputs, var, TokenMap.from_roles(roles), new, 1.05)


def ran_through(case: Case, way: str) -> str | None:
    """Generate once; the backend of the decode steps, by calls of the compiled kernel. None: of no edit."""
    if way not in EDITED:
        case.run(way)
        return None
    if "numba" not in BACKENDS:
        case.run(way)
        return "torch"
    from regaze.kernels.numba import launch

    with mock.patch.object(launch.kernel, "attend_calls", wraps=launch.kernel.attend_calls) as kernel:
        case.run(way)
    steps = case.new - 1
    return "numba" if kernel.call_count >= steps else "numba and torch" if kernel.call_count else "torch"


def measure(case: Case, budget: float, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Median time, ratio to plain and peak memory of each way: 5 to 40 rounds within `budget` seconds."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    backends = {way: ran_through(case, way) for way in WAYS}  # warm-up, too: caches, kernels, page faults
    started = time.perf_counter()
    while (done := len(seconds["plain"])) < 5 or (done < 40 and time.perf_counter() - started < budget):
        progress(f"{case.name}: round {done + 1}")
        for way in random.sample(WAYS, len(WAYS)):
            start = time.perf_counter()
            case.run(way)
            seconds[way].append(time.perf_counter() - start)
    rows = []
    for way in WAYS:
        with PeakMemory() as peak:
            case.run(way)
        ratios = [a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "case": case.name,
                "way": way,
                "batch": case.batch,
                "prompt": case.prompt,
                "new_tokens": case.new,
                "tokens_per_second": round(case.batch * case.new / statistics.median(seconds[way]), 1),
                "ratio": round(middle, 3),
                "ratio_quartiles": [round(low, 3), round(high, 3)],
                "backend": backends[way],
                "goal": case.goals.get(way),
                "rounds": len(ratios),
                "peak_mib": round(peak.mib, 1),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="short prompts and few rounds; no figures to keep"
    )
    parser.add_argument("--seconds", type=float, default=90.0, help="budget of each case")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    console = Console(stderr=True)
    facts = machine()
    console.print(facts)
    budget, prompt, new = (2.0, 256, 16) if options.quick else (options.seconds, 1024, 64)
    rows: list[dict[str, Any]] = []
    for batch in (1, 8):
        for case in (demo_case(batch, new), llama_case(batch, prompt, new)):
            with console.status("") as status:
                measured = measure(case, budget, status.update)
            Console().print(table(case.name, measured))
            rows += measured
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """The rows of one case."""
    columns = ("way", "steps in", "tokens/s", "x plain (quartiles)", "goal", "peak MiB")
    made = Table(*columns, title=title)
    for row in rows:
        low, high = row["ratio_quartiles"]
        goal = f"<= {row['goal']:.2f}" if row["goal"] else ""
        ratio = f"{row['ratio']:.3f} ({low:.3f}-{high:.3f})"
        speed, peak = f"{row['tokens_per_second']:.0f}", f"{row['peak_mib']:.0f}"
        made.add_row(row["way"], row["backend"], speed, ratio, goal, peak)
    return made


if __name__ == "__main__":
    main()
