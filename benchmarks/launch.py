"""What an edited decode layer costs the host beside a whole decoder layer, and how many kernels get compiled.

    python benchmarks/launch.py [--counts] [--output benchmarks/results/launch.json]

No GPU is needed. Triton plans, binds and launches as it would on one of compute capability 9.0, but where it
would compile a kernel or call the driver, nothing happens. So all that Python does per call is there, and
nothing of the GPU or of the driver's own launch. Two lines come out:

    ratio              microseconds of the host per edited decode call (VAR with masses and entropy on
                       record), beside those of a whole transformers decoder layer with tiny weights: what
                       the host spends per layer without any edit
    specialisations    kernels that 100 prompt lengths and 128 decode steps compile

The second line begins with the launches of a call whose samples leave no keys to split.

`--counts` leaves the times out: launches and specialisations are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported

import torch
from machine import machine
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import AttentionEdit, Channels, RowSelection, StatsRequest
from regaze.kernels.triton import decode, row_list
from regaze.kernels.triton.launch import attend_triton

#: As in Llama-3-8B: samples, query and key heads, head dimension.
BATCH, HEADS, KV_HEADS, DIM = 4, 32, 8, 128
IMAGE = 576
#: Samples that fill a GPU with one split of the keys each.
MANY = 64
POLICY = MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.3, 0.1)


class NamedDriver:
    """As much of a driver as planning a launch needs: the name of a GPU."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class StoppedKernel:
    """Stands where a compiled kernel would, under the key by which Triton finds it; counts its launches."""

    function, packed_metadata = 0, ()

    def __init__(self, name: str, key: str, launched: Callable[..., None]):
        self.name, self.key, self.launched = name, key, launched
        self.launches = 0

    def launch_metadata(self, *args: Any) -> None:
        return None

    def run(self, *args: Any) -> None:
        self.launches += 1
        self.launched(self, args)


@contextmanager
def stopped_launches(launched: Callable[..., None] = lambda *_: None) -> Iterator[list[StoppedKernel]]:
    """No kernel is compiled or launched; gives those that would have been.

    `launched` is called with each of them and with what it would have been launched with.
    """
    kernels: list[StoppedKernel] = []

    def compile_none(self: JITFunction, key: str, *args: Any, **kwargs: Any) -> StoppedKernel:
        kernels.append(StoppedKernel(self.__name__, key, launched))
        self.device_caches[0][0][key] = kernels[-1]
        return kernels[-1]

    def many(device: torch.device) -> int:
        return 132

    driver.set_active(NamedDriver())
    with (
        mock.patch.object(JITFunction, "_do_compile", compile_none),
        mock.patch.object(decode, "processors", many),
        mock.patch.object(row_list, "processors", many),
        torch.inference_mode(),
    ):
        yield kernels


def tensors(queries: int, keys: int, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """Query, and a cache that serves as keys and values."""
    query = torch.empty(batch, HEADS, queries, DIM, dtype=torch.bfloat16)
    return query, torch.empty(batch, KV_HEADS, keys, DIM, dtype=torch.bfloat16)


def edit(length: int, rows: RowSelection | None = None, batch: int = BATCH) -> AttentionEdit:
    """VAR, with seven masses and the entropy on record."""
    groups = torch.zeros(batch, length, dtype=torch.uint8)
    request = StatsRequest(rows=rows, channels=Channels(groups, 7), entropy=True)
    return AttentionEdit(rows=rows, channels=Channels(groups, 4), policy=POLICY, stats=request)


def prompt(length: int) -> None:
    """A prompt whose text after the image is edited and recorded."""
    query, cache = tensors(length, length)
    index = torch.arange(IMAGE + 5, length)
    rows = RowSelection(index, torch.ones(BATCH, len(index), dtype=torch.bool))
    mask = torch.ones(BATCH, 1, length, length, dtype=torch.bool).tril()
    attend_triton(query, cache, cache, edit(length, rows), mask=mask, scaling=0.1, is_causal=False)


def step(keys: int, one_edit: AttentionEdit, batch: int = BATCH) -> Callable[[], Any]:
    """A decode step over so many keys."""
    query, cache = tensors(1, keys, batch)
    mask = torch.ones(batch, 1, 1, keys, dtype=torch.bool)
    options: dict[str, Any] = {"mask": mask, "scaling": 0.1, "is_causal": False}
    return lambda: attend_triton(query, cache, cache, one_edit, **options)


def count() -> dict[str, int]:
    """Launches of a decode call, and what prompts and steps compile."""
    with stopped_launches() as kernels:
        for length in range(600, 700):
            prompt(length)
        prompts = len(kernels)
        one_edit = edit(640)
        for keys in range(641, 769):
            step(keys, one_edit)()
        steps = len(kernels) - prompts
        launches = []
        for call in (step(700, one_edit), step(700, edit(640, batch=MANY), MANY)):
            call()  # plans
            before = sum(kernel.launches for kernel in kernels)
            call()
            launches.append(sum(kernel.launches for kernel in kernels) - before)
    return {
        "launches_per_call": launches[0],
        "launches_of_many_samples": launches[1],
        "for_100_prompts": prompts,
        "for_128_steps": steps,
    }


def microseconds(call: Callable[[], Any], least: float = 3.0, times: int = 10) -> float:
    """Of one call, in the least disturbed of the rounds of `least` seconds, which others disturb for less."""
    for _ in range(50):
        call()
    seconds, began = [], time.perf_counter()
    while (start := time.perf_counter()) - began < least:
        for _ in range(times):
            call()
        seconds.append((time.perf_counter() - start) / times)
    return 1e6 * min(seconds)


def timed() -> dict[str, float]:
    """Microseconds of the host: an edited decode call, and a decoder layer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=8)
    layer = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().model.layers[0]
    x, rotary = torch.zeros(1, 1, 32), (torch.zeros(1, 1, 16), torch.zeros(1, 1, 16))
    with stopped_launches():
        edited = microseconds(step(700, edit(640)))
        plain = microseconds(lambda: layer(x, position_embeddings=rotary))
    return {"edited_call_us": round(edited, 1), "decoder_layer_us": round(plain, 1), "ratio": edited / plain}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", action="store_true", help="leave the times out")
    parser.add_argument("--output", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine()}
    report |= count()
    if not args.counts:
        report |= timed()
        print(
            f"host per edited decode call: {report['edited_call_us']:.0f} us, {report['launches_per_call']} "
            f"launches; a whole transformers decoder layer: {report['decoder_layer_us']:.0f} us; "
            f"ratio {report['ratio']:.2f}"
        )
    print(
        f"launches of {MANY} samples at once: {report['launches_of_many_samples']}; "
        f"specialisations: {report['for_100_prompts']} over 100 prompt lengths, "
        f"{report['for_128_steps']} over 128 decode steps"
    )
    if args.output:
        report["ratio"] = round(report.get("ratio", 0.0), 3)
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
