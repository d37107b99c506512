"""Timings and memory of benchmarks/README.md, and what `attend` gets right."""

from __future__ import annotations

from typing import Any

from figures.markdown import machine, number, table
from figures.sources import read

__all__ = [
    "analysis",
    "attend_cases",
    "attention",
    "evaluate",
    "launch",
    "machine_of",
    "methods",
    "methods_plain",
    "overhead",
    "pruning",
    "reader_limits",
    "serving",
]
FOLDER = "benchmarks/results"


def machine_of(name: str) -> str:
    """Where a file of results was measured."""
    return machine(read(f"{FOLDER}/{name}.json")["machine"])


def overhead() -> str:
    """Ways of running beside plain SDPA."""
    rows = []
    for row in read(f"{FOLDER}/overhead.json")["rows"]:
        low, high = row["ratio_quartiles"]
        ratio = "1" if row["way"] == "plain" else f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"
        goal = "" if row["goal"] is None else f"{row['goal']:.2f}"
        edited = row["way"] in ("var", "recording")
        rows.append(
            [
                row["case"],
                row["way"],
                row.get("backend", "torch") if edited else "",  # all there was, before files named it
                f"{row['tokens_per_second']:.0f}",
                ratio,
                goal,
                f"{row['peak_mib']:.0f}",
            ]
        )
    return table(["model", "way", "steps in", "tokens/s", "x plain", "goal", "peak MiB"], rows)


def attention() -> str:
    """Per case the best unedited peer, and regaze's times of every kind over its time."""
    kinds = ("unedited", "masses", "var", "gift", "bias", "score map")
    by_case: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in read(f"{FOLDER}/attention-cpu.json")["rows"]:
        key = (row["model"], row["phase"], row["dtype"], row["batch"], row["keys"])
        by_case.setdefault(key, []).append(row)
    rows = []
    for (model, phase, dtype, batch, keys), group in by_case.items():
        name = group[0]["best_peer"]
        best = next(row for row in group if (row["kind"], row["way"]) == ("unedited", name))
        share = f"{best['of_copy']:.0%}" if "of_copy" in best else ""
        ours = {row["kind"]: f"{row['x_best_peer']:.2f}" for row in group if row["way"] == "regaze"}
        case = f"{model} {phase} {dtype}, B={batch}, {keys} keys"
        rows.append([case, name, f"{best['us']:.0f}", share, *(ours.get(kind, "") for kind in kinds)])
    return table(["case", "best peer", "us", "of copy", *kinds], rows, right=2 + len(kinds))


def attend_cases() -> str:
    """A backend against the specification."""
    found = read(f"{FOLDER}/attend-cases.json")
    head = ["dtype", "cases", "worst output", "with statistics", "worst statistic", "over budget"]
    rows = []
    for row in found["rows"]:
        figures = (row["cases"], row["worst_output"], row["with_statistics"], row["worst_statistics"])
        texts = [number(f, 0 if isinstance(f, int) else 2) for f in figures]
        if not row["with_statistics"]:
            texts[-1] = ""
        rows.append([row["dtype"], *texts, str(row["over_budget"] + row["nan_mismatches"])])
    beyond = next(row["beyond_fp16"] for row in found["rows"] if row["dtype"] == "float16")
    note = (
        f"{number(beyond, 0)} of the fp16 cases have scores far beyond 65,504; these count by what is finite "
        f"alone. Backend {found['backend']}, seed {found['seed']}, {number(found['seconds'], 0)} s."
    )
    return f"{table(head, rows)}\n\n{note}"


def methods() -> str:
    """What a token and a prompt cost under each method."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read(f"{FOLDER}/methods.json")["rows"]:
        cases.setdefault(row["case"], {})[row["way"]] = row
    ways = sorted({way for rows in cases.values() for way in rows} - {"plain", "two separate forwards"})
    head = ["method", *(text for case in cases for text in (f"{case}: token", "prompt"))]
    lines = []
    for way in (*ways, "two separate forwards"):
        cells = []
        for rows in cases.values():
            row = rows.get(way)
            if row is None:
                cells += ["", ""]
                continue
            low, high = row["token_quartiles"]
            cells += [f"{row['token_ratio']:.2f} ({low:.2f}-{high:.2f})", f"{row['prompt_ratio']:.2f}"]
        lines.append([way, *cells])
    return table(head, lines)


def methods_plain() -> str:
    """What a token of plain decoding takes."""
    rows = [row for row in read(f"{FOLDER}/methods.json")["rows"] if row["way"] == "plain"]
    return ", ".join(f"{row['ms_per_token']:.3g} ms ({row['case']})" for row in rows)


def pruning() -> str:
    """Removing image tokens beside hiding them and plain decoding."""
    rows = []
    for row in read(f"{FOLDER}/pruning.json")["rows"]:
        times = []
        for what in ("prompt", "token"):
            low, high = row[f"{what}_quartiles"]
            times.append(f"{row[f'{what}_times_faster']:.2f} ({low:.2f}-{high:.2f})")
        differs = ""
        if "same_tokens" in row:
            differs = f"{row['logits_differ']:.1g}; {row['same_tokens']:.0%} of the tokens"
        figures = (f"{row['tokens_per_second']:.1f}", *times, f"{row['cache_of_plain']:.0%}", differs)
        rows.append([row["case"], row["way"], *figures])
    head = ["model", "way", "tokens/s", "prompt: x plain", "token: x plain", "cache", "beside hidden: logits"]
    return table(head, rows)


def evaluate() -> str:
    """Batches and shared prefixes."""
    rows = []
    for row in read(f"{FOLDER}/evaluate.json")["rows"]:
        low, high = row["seconds_range"]
        seconds = f"{row['seconds']:.1f} ({low:.1f}-{high:.1f})"
        against = f"{row['times_faster']:.2f} x as fast, {row['tokens_ratio']:.2f} x fewer prompt tokens"
        cells = [row["condition"], row["way"], f"{row['prompt_tokens']:,}", seconds, against]
        rows.append([*cells, str(row["answers_that_differ"])])
    head = ["condition", "way", "prompt tokens", "seconds", "against batches of 16", "answers that differ"]
    return table(head, rows)


def serving() -> str:
    """Questions per second inside vLLM and under transformers."""
    found = read(f"{FOLDER}/serving.json")
    rows = []
    for row in found["rows"]:
        low, high = row["per_second_range"]
        ratios = ("of_plain", "goal", "of_batches", "of_shared")
        rows.append(
            [
                row["condition"],
                row["way"],
                f"{row['per_second']:.1f} ({low:.1f}-{high:.1f})",
                *("" if row[name] is None else f"{row[name]:.2f}" for name in ratios),
                str(row["answers_that_differ"]),
            ]
        )
    head = [
        "condition",
        "way",
        "prompts/s",
        "x plain vLLM",
        "goal",
        "x batches",
        "x shared prefixes",
        "differ",
    ]
    note = (
        f"vLLM {found['machine']['vllm']}; {found['rows'][0]['prompts']} prompts, {found['rounds']} rounds."
    )
    return f"{table(head, rows)}\n\n{note}"


def analysis() -> str:
    """Memory of analyses of a long prompt."""
    found = read(f"{FOLDER}/analysis.json")
    rows = [[row["way"], f"{row['peak_mib']:,.0f}"] for row in found["rows"]]
    model = found["model"]
    note = (
        f"{model['tokens']:,} tokens, {model['image_tokens']:,} of them image tokens; {model['layers']} "
        f"layers of {model['heads']} heads. The tensor of all attention weights would take "
        f"{found['all_attention_mib']:,.0f} MiB."
    )
    return f"{table(['way', 'peak MiB'], rows)}\n\n{note}"


def launch() -> str:
    """What an edited decode call costs the host, and how many kernels get compiled."""
    found = read(f"{FOLDER}/launch.json")
    steps, lengths = found["for_128_steps"], found["for_100_prompts"]
    kernels = f"128 steps compile {steps} kernels and 100 prompt lengths {lengths}"
    return (
        f"{kernels}, and an edited call of {found['launches_per_call']} launches takes {found['ratio']:.2f} "
        "of the host's time for a whole transformers decoder layer"
    )


def reader_limits() -> str:
    """The slowest and the largest of the worst files, by kind."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in read(f"{FOLDER}/reader-limits.json")["rows"]:
        kinds.setdefault(row["file"].split("-")[0], []).append(row)
    names = {"json": "JSON", "lines": "JSON lines", "answers": "answers", "table": "TSV", "yaml": "YAML"}
    rows = [
        [
            names.get(kind, kind),
            str(len(files)),
            f"{max(row['bytes'] for row in files) / 2**20:.1f}",
            f"{max(row['seconds'] for row in files):.1f}",
            str(max(row["mib"] for row in files)),
        ]
        for kind, files in kinds.items()
    ]
    head = ["kind", "files", "largest, MiB", "slowest, CPU seconds", "most memory, MiB"]
    return table(head, rows)
