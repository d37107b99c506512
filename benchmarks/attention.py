"""What an edit costs inside one attention layer, beside what others offer for it.

    python benchmarks/attention.py [--quick] [--json benchmarks/results/attention-cpu.json]
        [--models NAME ...] [--phases decode prefill] [--batches N ...] [--lengths N ...] [--dtypes NAME ...]
        [--peers sdpa flex eager] [--seconds S]
    python benchmarks/attention.py --tune [FILE]

Each case is one layer of a known model: decode (one query over Lk keys) or prefill (Lk causal queries over
themselves). It is run unedited, with masses recorded, with VAR, with GIFT, with a column bias and with a
score map: by regaze (on a GPU the Triton backend, at decode over keys in pages, too; on a CPU the torch
backend), by every backend of SDPA that can, by compiled FlexAttention where a score_mod can say it, and by
eager code. All ways of a case are interleaved, in an order drawn anew each round, and each call finds the
caches filled with something else, as in a model, whose weights pass through them between two layers. Figures
are medians and quartiles over the rounds; a ratio is the median of the ratios within the rounds.

GB/s counts what any decoding must read and write: keys, values, queries, outputs. It is given as a share of
the bandwidth of a copy measured in the same run. GFLOP/s of a prefill counts the two products under the
causal mask. On a GPU a call is captured in a CUDA graph and timed by events: the device, not Python.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from layers import DEVICE, KINDS, MODELS, Case, Inputs
from machine import cache_bytes, free_bytes, machine
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from regaze.kernels import attend, attend_paged
from regaze.kernels.reference import edit_scores

#: Tokens of a batch that are prefilled at once.
MAX_PREFILL = 1 << 16

#: Keys of a page.
PAGE_SIZE = 16

SDPA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


class Refusal(Exception):
    """Why a way cannot do what is asked of it."""


class Call(NamedTuple):
    """Something to time, and the block to be in meanwhile."""

    run: Callable[[], Any]
    block: Callable[[], AbstractContextManager[Any]] = nullcontext
    captured: bool = False


# --- the ways: each takes the inputs and a kind


def by_regaze(inputs: Inputs, kind: str) -> Call:
    options = {"is_causal": inputs.causal, "backend": backend()}
    return Call(partial(attend, inputs.q, inputs.k, inputs.v, inputs.edits[kind], **options))


def backend() -> str:
    return "triton" if DEVICE.type == "cuda" else "torch"  # Triton's interpreter is not worth timing


def by_pages(inputs: Inputs, kind: str) -> Call:
    """The same over keys and values in pages of 16, in any order."""
    if inputs.causal:
        raise Refusal("a prefill gathers its pages")
    batch, heads, keys, dim = inputs.k.shape
    count = -(-keys // PAGE_SIZE)
    table = torch.randperm(batch * count, device=DEVICE).view(batch, count)

    def paged(whole: Tensor) -> Tensor:
        pages = F.pad(whole, (0, 0, 0, count * PAGE_SIZE - keys)).unflatten(2, (count, PAGE_SIZE))
        cache = whole.new_empty(batch * count, heads, PAGE_SIZE, dim)
        cache[table] = pages.transpose(1, 2)
        return cache

    lengths = torch.full((batch,), keys, dtype=torch.int32, device=DEVICE)
    operands = inputs.q, paged(inputs.k), paged(inputs.v), table.int(), lengths
    return Call(partial(attend_paged, *operands, inputs.edits[kind], backend=backend()))


def by_sdpa(name: str, inputs: Inputs, kind: str) -> Call:
    if DEVICE.type == "cpu" and name in ("efficient", "cudnn"):
        raise Refusal("only on a GPU")
    if kind not in ("unedited", "bias"):
        raise Refusal("SDPA adds a mask to scores and does nothing else")
    mask = None
    if kind == "bias":
        mask = inputs.column[:, None, None]
        if (visible := inputs.visible()) is not None:
            mask = mask.masked_fill(~visible, -torch.inf)
        mask = mask.expand(-1, -1, inputs.q.shape[2], -1).to(inputs.q.dtype)
    causal = inputs.causal and mask is None
    attention = partial(F.scaled_dot_product_attention, is_causal=causal, enable_gqa=inputs.shared)
    return Call(
        partial(attention, inputs.q, inputs.k, inputs.v, mask), partial(sdpa_kernel, SDPA_BACKENDS[name])
    )


def by_flex(inputs: Inputs, kind: str) -> Call:
    if kind not in ("unedited", "bias", "score map"):
        raise Refusal("FlexAttention has neither edits after the softmax nor outputs beside lse")
    column = inputs.column

    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + column[b, j]

    def bend(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + column[b, j] * score.abs()

    def below(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j

    queries, keys = inputs.q.shape[2], inputs.k.shape[2]
    block_mask = create_block_mask(below, None, None, queries, keys, DEVICE) if inputs.causal else None
    score_mod = {"unedited": None, "bias": add, "score map": bend}[kind]
    attention = partial(
        torch.compile(flex_attention, dynamic=False), score_mod=score_mod, block_mask=block_mask
    )
    return Call(partial(attention, inputs.q, inputs.k, inputs.v, enable_gqa=inputs.shared))


def by_eager(inputs: Inputs, kind: str) -> Call:
    """The edit written into eager attention, as forks of models do it: every row, whole matrices."""
    q, edit, visible = inputs.q, inputs.edits[kind], inputs.visible()
    group, keys = q.shape[1] // inputs.k.shape[1], inputs.k.shape[2]
    request = edit.stats

    def call() -> Any:
        k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (inputs.k, inputs.v))
        scores = edit_scores((q @ k.mT) * q.shape[-1] ** -0.5, edit)
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        weights = torch.softmax(scores, -1, dtype=torch.float32)
        masses = None
        if request is not None and request.channels is not None:
            masses = request.channels.masses(weights)
        if edit.channels is not None and edit.policy is not None:
            edited = weights * edit.channels.per_key(edit.policy(edit.channels.masses(weights)), keys)
            if edit.rows is not None:
                weights = weights.index_copy(2, edit.rows.index, edited[:, :, edit.rows.index])
            else:
                weights = edited
        return weights.to(v.dtype) @ v, masses

    return Call(call)


Way = Callable[[Inputs, str], Call]


def ways(peers: list[str]) -> dict[str, Way]:
    """Every way by its name, regaze first."""
    chosen: dict[str, Way] = {"regaze": by_regaze}
    if DEVICE.type == "cuda":  # elsewhere pages are gathered
        chosen["regaze, pages"] = by_pages
    if "sdpa" in peers:
        chosen |= {f"sdpa {name}": partial(by_sdpa, name) for name in SDPA_BACKENDS}
    if "flex" in peers:
        chosen["flex"] = by_flex
    if "eager" in peers:
        chosen["eager"] = by_eager
    return chosen


# --- measuring


class Timer:
    """Seconds of a call that finds cold caches."""

    def __init__(self) -> None:
        self.other = torch.zeros(2 * cache_bytes() // 4, device=DEVICE)
        self.pool = torch.cuda.graph_pool_handle() if DEVICE.type == "cuda" else None

    def prepare(self, call: Call) -> Call:
        """Warm up, and on a GPU capture the call in a graph where it can be."""
        with call.block():
            started = time.perf_counter()
            while time.perf_counter() - started < 0.1:
                call.run()
            if DEVICE.type != "cuda":
                return call
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self.pool):
                    call.run()
            except RuntimeError:
                torch.cuda.synchronize()
                return call
        return Call(graph.replay, captured=True)

    def __call__(self, call: Call) -> float:
        with call.block():
            if DEVICE.type == "cuda":
                from triton.testing import do_bench  # it empties the L2 cache before each run

                return do_bench(call.run, warmup=1, rep=1, return_mode="median") / 1e3
            self.other.add_(1.0)
            start = time.perf_counter()
            call.run()
            return time.perf_counter() - start


def copy_bandwidth(timer: Timer) -> float:
    """Bytes per second that a copy reads and writes, best of 20."""
    source = torch.zeros(max(2 * cache_bytes(), 1 << 28) // 4, device=DEVICE)
    target = torch.empty_like(source)
    call = timer.prepare(Call(lambda: target.copy_(source)))
    return 2 * source.nbytes / min(timer(call) for _ in range(20))


def prepare(
    case: Case, timer: Timer, chosen: dict[str, Way]
) -> tuple[dict[tuple[str, str], Call], list[tuple[str, str, str]]]:
    """What can be called, by kind and way, and (kind, way, why) of the rest."""
    inputs, calls, refused = Inputs(case), {}, []
    torch._dynamo.reset()
    for kind in KINDS:
        for way, make in chosen.items():
            try:
                if way in ("eager", "sdpa math") and case.peak > free_bytes():
                    raise Refusal("its matrices do not fit in memory")
                calls[kind, way] = timer.prepare(make(inputs, kind))
            except Exception as error:  # whatever a peer or its compiler raises
                if way == "regaze":
                    raise
                said = str(error).strip().split("\n")[0][:200]
                why = said if isinstance(error, Refusal) else f"{type(error).__name__}: {said}"
                refused.append((kind, way, why))
    return calls, refused


def measure(
    calls: dict[tuple[str, str], Call], timer: Timer, seconds: float
) -> dict[tuple[str, str], list[float]]:
    """Seconds of every call in each of 5 to 30 rounds, as many as fit in `seconds`."""
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    started, rounds = time.perf_counter(), 0
    while rounds < 5 or (rounds < 30 and time.perf_counter() - started < seconds):
        for key in random.sample(list(calls), len(calls)):
            taken[key].append(timer(calls[key]))
        rounds += 1
    return taken


def figures(
    case: Case, calls: dict[tuple[str, str], Call], taken: dict[tuple[str, str], list[float]], copied: float
) -> list[dict[str, Any]]:
    """A row for every kind and way of a case."""
    peers = [key for key in calls if key[0] == "unedited" and key[1] != "regaze"]
    best = min(peers, key=lambda key: statistics.median(taken[key]), default=("unedited", "regaze"))
    rows = []
    for (kind, way), times in taken.items():
        low, middle, high = statistics.quantiles(times, n=4)
        row = {
            "model": case.model,
            "phase": case.phase,
            "dtype": case.dtype_name,
            "batch": case.batch,
            "keys": case.keys,
            "kind": kind,
            "way": way,
            "us": round(middle * 1e6, 1),
            "us_quartiles": [round(low * 1e6, 1), round(high * 1e6, 1)],
            "x_unedited": _ratio(times, taken.get(("unedited", way))),
            "x_best_peer": _ratio(times, taken[best]),
            "best_peer": best[1],
            "rounds": len(times),
            "cuda_graph": calls[kind, way].captured,
        }
        if case.phase == "decode":
            rate = case.bytes / middle
            row |= {"gb_per_s": round(rate / 1e9, 2), "of_copy": round(rate / copied, 3)}
        else:
            row["gflop_per_s"] = round(case.flops / middle / 1e9, 1)
        rows.append(row)
    return rows


def _ratio(times: list[float], of: list[float] | None) -> float | None:
    return None if of is None else round(statistics.median(a / b for a, b in zip(times, of, strict=True)), 3)


# --- which cases, and how to show them


def cases(options: argparse.Namespace) -> Iterator[Case]:
    for phase in options.phases:
        for model in options.models:
            for dtype in options.dtypes:
                for batch in options.batches:
                    for keys in options.lengths:
                        if phase == "prefill" and batch * keys > MAX_PREFILL:
                            continue
                        if options.quick and not _is_quick(model, phase, dtype, batch, keys):
                            continue
                        yield Case(model, phase, batch, keys, getattr(torch, dtype))


def _is_quick(model: str, phase: str, dtype: str, batch: int, keys: int) -> bool:
    if phase == "prefill":
        return model in ("SmolVLM", "Qwen2.5-VL-7B") and dtype == "float32" and (batch, keys) == (1, 1024)
    return (batch, keys) in ((1, 1024), (1, 4096)) or (model, batch, keys) == ("SmolVLM", 8, 1024)


def show(console: Console, case: Case, rows: list[dict[str, Any]]) -> None:
    rate = "GB/s (of copy)" if case.phase == "decode" else "GFLOP/s"
    table = Table("kind", "way", "us (quartiles)", rate, "x unedited", "x best peer", title=str(case))
    for row in rows:
        low, high = row["us_quartiles"]
        speed = (
            f"{row['gb_per_s']:.1f} ({row['of_copy']:.0%})"
            if case.phase == "decode"
            else f"{row['gflop_per_s']:.0f}"
        )
        ratios = ("" if row[name] is None else f"{row[name]:.2f}" for name in ("x_unedited", "x_best_peer"))
        table.add_row(row["kind"], row["way"], f"{row['us']:.0f} ({low:.0f}-{high:.0f})", speed, *ratios)
    console.print(table)


def summary(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Per case the best unedited peer, and regaze's times of every kind over its time; a header first."""
    lines = [["case", "best peer", "us", "of copy", *KINDS]]
    by_case: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["model"], row["phase"], row["dtype"], row["batch"], row["keys"])
        by_case.setdefault(key, []).append(row)
    for (model, phase, dtype, batch, keys), group in by_case.items():
        ours = {row["kind"]: f"{row['x_best_peer']:.2f}" for row in group if row["way"] == "regaze"}
        name = group[0]["best_peer"]
        best = next(row for row in group if (row["kind"], row["way"]) == ("unedited", name))
        share = f"{best['of_copy']:.0%}" if "of_copy" in best else ""
        case = f"{model} {phase} {dtype}, B={batch}, {keys} keys"
        lines.append([case, name, f"{best['us']:.0f}", share, *(ours.get(kind, "") for kind in KINDS)])
    return lines


def markdown(lines: list[list[str]]) -> str:
    """A table for a page."""
    header, *body = lines
    rows = [header, ["---", "---", *["---:"] * (len(header) - 2)], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = DEVICE.type == "cuda"
    parser.add_argument(
        "--quick", action="store_true", help="few shapes and rounds: below 3 minutes on a CPU"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--phases", nargs="+", choices=("decode", "prefill"), default=["decode", "prefill"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 16384, 65536])
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("bfloat16", "float16", "float32"),
        default=["bfloat16"] if on_gpu else ["float32", "bfloat16"],
    )
    parser.add_argument(
        "--peers", nargs="+", choices=("sdpa", "flex", "eager"), default=["sdpa", "flex", "eager"]
    )
    parser.add_argument("--seconds", type=float, help="budget of each case's rounds; default 10, quick 1")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print the summary of a run as Markdown")
    parser.add_argument(
        "--tune", nargs="?", const=True, metavar="FILE", help="tune the kernels; the package's own table"
    )
    options = parser.parse_args()
    if options.seconds is None:
        options.seconds = 1.0 if options.quick else 10.0
    return options


def tune(options: argparse.Namespace) -> None:
    """Search rules for the tuning table, and write it after every group of cases."""
    if DEVICE.type != "cuda":
        print("--tune times kernels on a GPU, and torch finds none here", file=sys.stderr)
        sys.exit(2)
    from tune import tuned, using, write

    from regaze.kernels.triton import tuning

    def fresh(inputs: Inputs, kind: str) -> Call:
        """A call whose edit has no launches bound to it, cut by the table in use now."""
        edit = inputs.edits[kind].replace()
        run = partial(attend, inputs.q, inputs.k, inputs.v, edit, is_causal=inputs.causal, backend="triton")
        return Call(run, partial(using, tuning.TABLE))

    file = tuning.FILE if options.tune is True else Path(options.tune)
    table, timer = tuning.read(), Timer()
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases(options):
        groups.setdefault((case.model, case.phase, case.dtype_name), []).append(case)
    for group in groups.values():
        every = [Inputs(case) for case in group if len(group) * 2 * case.bytes < free_bytes()]
        table = tuned(table, [partial(fresh, inputs, kind) for inputs in every for kind in KINDS], timer)
        write(table, file)


@torch.inference_mode()
def main() -> None:
    options, progress, console = arguments(), Console(stderr=True), Console(width=140)
    if options.tune:
        tune(options)
        return
    if options.show:
        print(markdown(summary(json.loads(options.show.read_text())["rows"])))
        return
    facts, timer, every = machine(), Timer(), ways(options.peers)
    progress.print(facts)
    copied = copy_bandwidth(timer)
    progress.print(f"a copy reads and writes {copied / 1e9:.1f} GB/s")
    rows: list[dict[str, Any]] = []
    refused: dict[tuple[str, str, str], list[str]] = {}
    for case in cases(options):
        gc.collect()
        torch.cuda.empty_cache()
        if 2 * case.bytes > free_bytes():
            refused.setdefault(("all", "all", "its tensors do not fit in memory"), []).append(str(case))
            continue
        # A quick run compiles FlexAttention for one length and dtype: each kind takes seconds.
        whole = not options.quick or (case.batch, case.keys, case.dtype) == (1, 1024, torch.float32)
        left_out = set() if whole else {"flex"}
        if options.quick and DEVICE.type == "cpu":
            left_out.add("sdpa math")
        chosen = {way: make for way, make in every.items() if way not in left_out}
        with progress.status(str(case)):
            calls, reasons = prepare(case, timer, chosen)
            new = figures(case, calls, measure(calls, timer, options.seconds), copied)
        rows += new
        for reason in reasons:
            refused.setdefault(reason, []).append(str(case))
        show(console, case, new)
        if options.json:  # after every case: a long run may be stopped
            report = {
                "machine": facts,
                "quick": options.quick,
                "copy_gb_per_s": round(copied / 1e9, 2),
                "rows": rows,
                "refused": [
                    {"kind": kind, "way": way, "why": why, "cases": names}
                    for (kind, way, why), names in refused.items()
                ],
            }
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    header, *body = summary(rows)
    table = Table(*header, title="regaze: time over that of the best unedited peer")
    for line in body:
        table.add_row(*line)
    console.print(table)
    for (kind, way, why), names in refused.items():
        progress.print(f"{way}, {kind} ({len(names)} cases): {why}")


if __name__ == "__main__":
    main()
