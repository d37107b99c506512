"""What the binaries of the kernels say."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from figures.markdown import number, table
from figures.sources import read

__all__ = ["sass", "sass_prefill"]
FILE = "benchmarks/results/sass.json"


def _used(row: dict[str, Any]) -> list[str]:
    """Registers, KiB of shared memory, bytes of stack, programs of a multiprocessor."""
    shared = number(row["shared"] / 1024, 0)
    return [str(row["registers"]), shared, str(row["stack"]), str(row["programs"])]


def sass() -> str:
    """Decode kernels: what they use, spend per key, and the bound that follows."""
    found = read(FILE)
    decoded = [row for row in found["rows"] if row["call"].startswith("decode")]
    lines = []
    for (call, kernel, architecture), group in groupby(
        decoded, key=lambda row: (row["call"], row["kernel"], row["architecture"])
    ):
        rows = list(group)
        name = call.removeprefix("decode bfloat16: ")
        spent = ["", "", "", ""]
        if "gpu" in rows[0]:
            bounds = (f"{min(1.0, r['times_bandwidth']):.0%} {r['gpu']}" for r in rows)
            spent = [
                number(rows[0]["instructions_per_key"], 1),
                number(rows[0]["bytes_per_key"], 0),
                number(rows[0]["bytes_in_flight"] / 1024, 0),
                f"{', '.join(bounds)} ({number(min(r['times_bandwidth'] for r in rows), 1)} x, "
                f"{rows[0]['limit']})",
            ]
        lines.append([name, f"`{kernel}`", architecture, *_used(rows[0]), *spent])
    head = ["edit", "kernel", "binary", "registers", "shared KiB", "stack", "programs"]
    head += ["instructions per key", "bytes per key", "KiB in flight", "computed bound of the bandwidth"]
    note = f"Compiled by Triton {found['triton']}."
    return f"{table(head, lines)}\n\n{note}"


def sass_prefill() -> str:
    """Kernels of a prefill under VAR with a recording."""
    lines = []
    for row in read(FILE)["rows"]:
        if row["call"].startswith("prefill"):
            spent = ["", "", ""]
            if "rows" in row:
                spent = [f"{row['rows']} x {row['keys']}", number(row["instructions_per_key"], 1)]
                spent.append(number(row["instructions_per_key"] / row["rows"], 2))
            lines.append([f"`{row['kernel']}`", row["architecture"], *_used(row), *spent])
    head = ["kernel", "binary", "registers", "shared KiB", "stack", "programs", "rows x keys"]
    return table([*head, "instructions per key", "per key and row"], lines)
