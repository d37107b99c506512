"""Compares the launches of plans with those that Triton would make of the same calls, without a GPU.

`python tests/support/bound_launches.py 200` makes 200 random decode calls per edit, with edits that are used
again and with new ones of the same parts. An edit that is used again launches its kernels directly; a new one
goes through Triton, which binds the arguments and derives the key of the kernel. Both must come to the same
kernel with the same arguments. Prints a line of JSON: what differed, and how many launches were direct.
"""

from __future__ import annotations

import json
import os
import random
import sys
import warnings
from dataclasses import replace
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported

import torch
from paths import ROOT
from torch import Tensor

sys.path.insert(0, str(ROOT / "benchmarks"))

from launch import StoppedKernel, stopped_launches

from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import AttentionEdit, Channels, RowSelection, Scale, StatsRequest, UnmaskRect, Windows
from regaze.kernels.pages import Pages
from regaze.kernels.triton import decode, tiling
from regaze.kernels.triton.bound import Launch
from regaze.kernels.triton.launch import (
    attend_paged_triton,
    attend_triton,
    attention_stats_triton,
    is_decoded,
)

HEADS, NAMED = 6, 40
KINDS = (torch.float16, torch.bfloat16, torch.float32)


def edits(batch: int) -> dict[str, AttentionEdit]:
    """Edits by what is bound: policies of each kind, columns, derived tensors, statistics of each kind."""
    groups = torch.randint(0, 3, (batch, NAMED), dtype=torch.uint8)
    channels, more = Channels(groups, 3), Channels(groups, 3, torch.rand(1, batch, NAMED))
    record = StatsRequest(channels=more, entropy=True, top1=True, lse=True)
    half = StatsRequest(RowSelection(torch.tensor([0])), channels, lse=True, columns=torch.tensor([[3, -1]]))
    move = MoveMass(3, (1,), (2,), (1, 2), 0.6, 0.1, 0.1)
    some = RowSelection(torch.tensor([0]), torch.ones(batch, 1, dtype=torch.bool))
    opening = UnmaskRect(torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool))
    column = torch.rand(1, HEADS, NAMED)
    return {
        "plain": AttentionEdit(),
        "record": AttentionEdit(stats=record),
        "var": AttentionEdit(channels=channels, policy=move, stats=half),
        "gift": AttentionEdit(channels=more, policy=AmplifyTopHeads(4, 1, 2, 3, heads=3), stats=record),
        "scale": AttentionEdit(some, channels=channels, policy=Scale((1.0, 0.5, 2.0))),
        "columns": AttentionEdit(
            bias=column, value_gain=column[:, :1], score_gain=column.mT.contiguous().mT, stats=record
        ),
        "gains": AttentionEdit(head_gain=torch.rand(batch, HEADS), head_score_gain=torch.rand(1, HEADS)),
        "sink": AttentionEdit(
            sink=torch.rand(1, HEADS, 1), channels=channels, policy=move, stats=replace(half, edited=True)
        ),
        "windows": AttentionEdit(windows=Windows(torch.full((1, HEADS), 20), 2), unmask=(opening,)),
    }


def operands(chosen: random.Random, batch: int) -> tuple[list[Tensor], dict[str, Any]]:
    """Query, keys, values and options of one call: any length, type, memory order, alignment and mask."""
    keys, dtype = chosen.choice([NAMED, chosen.randint(NAMED, 300), 1100]), chosen.choice(KINDS)
    shift = chosen.choice([0, 0, 0, 1])  # of the first address, in elements

    def tensor(heads: int, length: int) -> Tensor:
        size = batch * heads * length * 64
        flat = torch.empty(size + shift, dtype=dtype)[shift:]
        if chosen.random() < 0.5:
            return flat.view(batch, length, heads, 64).transpose(1, 2)
        return flat.view(batch, heads, length, 64)

    kind = chosen.choice([None, torch.bool, dtype])
    shape = chosen.choice([1, batch]), chosen.choice([1, 1, HEADS]), 1, keys
    mask = None if kind is None else torch.ones(shape, dtype=kind)
    if mask is not None and chosen.random() < 0.3:
        mask = mask[:1, :1].expand(batch, -1, -1, -1)
    options = {"mask": mask, "scaling": 0.1, "is_causal": False}
    options |= {"softcap": chosen.choice([None, 30.0]), "sinks": SINKS if chosen.random() < 0.5 else None}
    return [tensor(HEADS, 1), tensor(2, keys), tensor(2, keys)], options


def paged_operands(chosen: random.Random, batch: int) -> tuple[list[Tensor], Pages, dict[str, Any]]:
    """Query, caches, pages and options of one call: any size, type, memory order and alignment."""
    page, dtype = chosen.choice([16, 24, 128]), chosen.choice(KINDS)
    shift, columns = chosen.choice([0, 0, 0, 1]), chosen.randint(3, 20)
    total = batch * columns

    def cache() -> Tensor:
        flat = torch.empty(total * 2 * page * 64 + shift, dtype=dtype)[shift:]
        if inner:
            return flat.view(total, page, 2, 64).transpose(1, 2)
        return flat.view(total, 2, page, 64)

    inner, whole = chosen.random() < 0.5, chosen.choice([torch.int32, torch.int64])
    table = torch.arange(total + shift)[shift:].view(batch, columns).to(whole)
    lengths = torch.full((batch + 1,), NAMED, dtype=whole)
    lengths = lengths[1:] if chosen.random() < 0.2 else lengths[:-1]
    options = {"scaling": 0.1, "softcap": None, "sinks": SINKS if chosen.random() < 0.5 else None}
    query = torch.empty(batch, HEADS, 1, 64, dtype=dtype)
    return [query, cache(), cache()], Pages(table, lengths), options


SINKS = torch.zeros(HEADS)
#: Before it: grid, stream, function, metadata and hooks.
FIRST_ARGUMENT = 9


def flat(part: Any, inputs: list[int]) -> Any:
    """An argument to compare: tensors that calls make for themselves by their form, others by address."""
    if isinstance(part, tuple):
        return tuple(flat(p, inputs) for p in part)
    if isinstance(part, Tensor):
        form = str(part.dtype), tuple(part.shape), part.stride(), part.data_ptr() % 16
        return (part.data_ptr() if part.data_ptr() in inputs else "own", *form)
    return part if isinstance(part, (int, float, type(None))) else repr(part)


def main() -> None:
    warnings.simplefilter("ignore")
    chosen, seen, direct, differing = random.Random(1), [], 0, []
    inputs: list[int] = []

    def launched(kernel: StoppedKernel, args: tuple[Any, ...]) -> None:
        if kernel.name != "range_kernel":  # remembered for later calls with the same mask
            seen.append((kernel.name, kernel.key, flat((*args[:4], *args[FIRST_ARGUMENT:]), inputs)))

    def run(
        edit: AttentionEdit, tensors: list[Tensor], options: dict[str, Any], pages: Pages | None = None
    ) -> list[Any]:
        seen.clear()
        if pages is not None:
            if is_decoded(tensors[0], edit):
                attend_paged_triton(*tensors, pages, edit, **options)
            return list(seen)
        attend_triton(*tensors, edit, **options)
        if edit.stats is not None:
            attention_stats_triton(*tensors[:2], edit.stats, **options)
        return list(seen)

    through = Launch._through_triton
    bound = []
    Launch._through_triton = lambda self, args: bound.append(1) or through(self, args)  # type: ignore[method-assign]
    with stopped_launches(launched):
        for batch, processors in ((1, 132), (3, 132), (3, 1)):  # the last with one split
            decode.processors = lambda device, processors=processors: processors  # type: ignore[misc]
            tiling.decode_tiling.cache_clear()
            for name, edit in edits(batch).items():
                for _ in range(int(sys.argv[1])):
                    tensors, options = operands(chosen, batch)
                    rest = [] if options["mask"] is None else [options["mask"]]
                    pages = None
                    if chosen.random() < 0.25:
                        tensors, pages, options = paged_operands(chosen, batch)
                        rest = list(pages)
                    inputs[:] = [x.data_ptr() for x in (*tensors, *rest, SINKS)]
                    bound.clear()
                    again = run(edit, tensors, options, pages)
                    direct += len(again) - len(bound)
                    stats = None if edit.stats is None else StatsRequest(**_parts(edit.stats))
                    new = run(edit.replace(stats=stats), tensors, options, pages)
                    if again != new:
                        differing.append([name, str(options), str(again), str(new)])
    print(json.dumps({"direct": direct, "differing": differing[:3], "count": len(differing)}))


def _parts(request: StatsRequest) -> dict[str, Any]:
    names = ("rows", "channels", "entropy", "top1", "lse", "columns", "full_rows", "edited")
    return {name: getattr(request, name) for name in names}


if __name__ == "__main__":
    main()
