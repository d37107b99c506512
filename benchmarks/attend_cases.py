"""How far `attend` is from its specification, over random cases.

    python benchmarks/attend_cases.py --cases 10000 --json benchmarks/results/attend-cases.json

Every case is a call with random shapes, dtype, grouped queries, mask, edit, policy, statistics, sinks, soft
cap, windows and sliding cache. A backend is compared with the reference in fp64 on the very same numbers. The
budget of an output is twice the error of eager code in its dtype, and a few roundings; that of statistics is
twice the error of the reference in fp32, and a few roundings. A ratio of 1 uses the budget up. fp16 cases
whose scores leave the range of fp16 count by what is finite alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from machine import machine
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from attend_variants import Deviation, Variant, deviation, parts_of, variants


def draw(count: int, number: int) -> list[Variant]:
    """Random cases, the same for the same seed."""
    drawn: list[Variant] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(variants())
    def collect(variant: Variant) -> None:
        drawn.append(variant)

    collect()
    return drawn[:count]


def summary(variants: list[Variant], deviations: list[Deviation]) -> list[dict[str, Any]]:
    """A row for each dtype and one for all."""
    pairs = list(zip(variants, deviations, strict=True))
    names = sorted({str(variant.case.q.dtype) for variant in variants})
    rows = []
    for name in [*names, "all"]:
        chosen = [pair for pair in pairs if name in (str(pair[0].case.q.dtype), "all")]
        ratios = torch.tensor([d.output for variant, d in chosen if not variant.huge])
        stats = [d.statistics for variant, d in chosen if variant.case.edit.stats is not None]
        rows.append(
            {
                "dtype": name.removeprefix("torch."),
                "cases": len(chosen),
                "beyond_fp16": sum(variant.huge for variant, _ in chosen),
                "worst_output": round(max(ratios.tolist(), default=0.0), 3),
                "p99_output": round(float(ratios.quantile(0.99)), 3) if len(ratios) else 0.0,
                "with_statistics": len(stats),
                "worst_statistics": round(max(stats, default=0.0), 3),
                "over_budget": sum(max(d.output, d.statistics) > 1 for _, d in chosen),
                "nan_mismatches": sum(d.mismatches for _, d in chosen),
            }
        )
    return rows


def coverage(variants: list[Variant]) -> dict[str, int]:
    """How many cases have each feature."""
    counts: Counter[str] = Counter()
    for variant in variants:
        case = variant.case
        mask = "none" if case.mask is None else str(case.mask.dtype).removeprefix("torch.")
        counts.update(parts_of(case.edit))
        counts[f"{case.q.shape[1] // case.k.shape[1]} query heads per key head"] += 1
        counts["mask: causal" if case.is_causal else f"mask: {mask}"] += 1
        counts["decode" if case.q.shape[2] == 1 else "prefill"] += 1
        counts["sinks"] += case.sinks is not None
        counts["softcap"] += case.softcap is not None
        counts["sliding cache"] += variant.dropped > 0
    return dict(sorted(counts.items()))


def run(count: int, number: int, backend: str) -> dict[str, Any]:
    """The report of a run."""
    facts, start = machine(), time.perf_counter()
    drawn = draw(count, number)
    deviations = [deviation(variant, backend) for variant in drawn]
    return {
        "machine": facts,
        "backend": backend,
        "seed": number,
        "seconds": round(time.perf_counter() - start, 1),
        "rows": summary(drawn, deviations),
        "coverage": coverage(drawn),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = run(options.cases, options.seed, options.backend)
    console = Console(width=140)
    console.print(report["machine"])
    table = Table(*report["rows"][0], title=f"{options.backend}, {report['seconds']} s")
    for row in report["rows"]:
        table.add_row(*map(str, row.values()))
    console.print(table, report["coverage"])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
