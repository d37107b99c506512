"""Retrieval heads of a small model: find them, mask them, and draw both.

    python benchmarks/heads.py MODEL --haystacks DIR [--work DIR] [--output DIR]

MODEL is a folder or a hub name; DIR holds the public-domain books named below (.txt or .txt.gz). Heads are
found with three needles in three books and masked on three other needles in a fourth text. The logs in --work
make an interrupted run go on where it stopped. docs/studies/retrieval.md tells what came out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import PeakMemory, machine
from matplotlib.figure import Figure

import regaze
from regaze.cli import console
from regaze.cli.models import quiet_libraries
from regaze.interventions.retrieval_heads import (
    NEEDLES,
    Ablation,
    Needle,
    RetrievalHeads,
    ablate_heads,
    find_retrieval_heads,
    read_haystack,
)
from regaze.interventions.retrieval_heads.cached_prompt import CachedPrompt
from regaze.toolkit import plot

BOOKS = ("sherlock_holmes_adventures", "moby_dick", "federalist_papers")
OTHER_TEXT = "us_inaugural_addresses"
FIND_LENGTHS, FIND_DEPTHS = (500, 1000, 2000, 4000, 8000), (10, 50, 90)
#: the plain model finds the other needles there well enough to lose something
MASK_LENGTHS, MASK_DEPTHS = (1000, 2000, 4000), (10, 50, 90)
COUNTS = (0, 2, 5, 10, 20)
MASK_NEW_TOKENS = 24  # the longest answer takes 11
#: name -> how heads are masked, and at which lengths
ABLATIONS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "removed while answering": ({"mode": "zero"}, MASK_LENGTHS),
    "averaging while answering": ({"mode": "uniform"}, (1000,)),
    "removed from the start": ({"mode": "zero", "while_reading": True}, (1000,)),
}
OTHER_NEEDLES = (
    Needle(
        "The password of the Marlow night school is a purple walrus that juggles seven oranges.",
        "What is the password of the Marlow night school?",
        "a purple walrus that juggles seven oranges",
        "The password of the Marlow night school is",
    ),
    Needle(
        "To repair the Kestrel engine you have to pour warm honey into the left valve and whistle twice.",
        "What do you have to do to repair the Kestrel engine?",
        "pour warm honey into the left valve and whistle twice",
        "To repair the Kestrel engine you have to",
    ),
    Needle(
        "The museum of Tarn was closed because a family of otters had moved into the marble fountain.",
        "Why was the museum of Tarn closed?",
        "a family of otters had moved into the marble fountain",
        "The museum of Tarn was closed because",
    ),
)


def find(model: Any, tokenizer: Any, folder: Path, work: Path, report: Any) -> RetrievalHeads:
    return find_retrieval_heads(
        model,
        tokenizer,
        [_book(folder, name) for name in BOOKS],
        NEEDLES,
        FIND_LENGTHS,
        FIND_DEPTHS,
        log=work / "trials.jsonl",
        progress=report,
    )


def mask(
    model: Any, tokenizer: Any, heads: RetrievalHeads, text: str, name: str, work: Path, report: Any
) -> Ablation:
    how, lengths = ABLATIONS[name]
    return ablate_heads(
        model,
        tokenizer,
        heads,
        text,
        OTHER_NEEDLES,
        lengths,
        MASK_DEPTHS,
        counts=COUNTS,
        max_new_tokens=MASK_NEW_TOKENS,
        log=work / "ablations.jsonl",
        progress=lambda what, done, total: report(name, done, total),
        **how,
    )


def agreement(heads: RetrievalHeads) -> dict[str, dict[str, float]]:
    """Correlation of the mean score with that of the trials of one needle, or of one length."""
    groups: dict[str, dict[str, float]] = {"needle": {}, "length": {}}
    for name, correlations in groups.items():
        for value in sorted({getattr(trial, name) for trial in heads.trials}):
            chosen = torch.tensor([getattr(trial, name) == value for trial in heads.trials])
            both = torch.stack([heads.mean().flatten(), heads.scores()[chosen].mean(0).flatten()])
            correlations[str(value)] = round(float(torch.corrcoef(both)[0, 1]), 3)
    return groups


def memory(model: Any, lengths: Sequence[int]) -> list[dict[str, float]]:
    """Peak memory of reading a prompt and answering with eight tokens, plain and recording top columns."""
    gaze, rows = regaze.wrap(model), []
    for length in lengths:
        ids = torch.arange(length).remainder(1000).add(100).tolist()
        row: dict[str, float] = {"length": length}
        with PeakMemory() as peak:
            CachedPrompt(model, ids).answer(8, frozenset())
        row["plain_mib"] = round(peak.mib)
        with PeakMemory() as peak, gaze.recording(masses=False, top1=True):
            CachedPrompt(model, ids).answer(8, frozenset())
        row["recording_mib"] = round(peak.mib)
        rows.append(row)
    return rows


def draw(ablations: dict[str, Ablation], path: Path) -> None:
    """Needle score against the number of heads masked: the top heads, and each draw of random others."""
    figure = Figure(figsize=(2.9 * len(ablations) + 0.6, 3.2), layout="constrained")
    for axes, (name, ablation) in zip(
        figure.subplots(1, len(ablations), sharey=True), ablations.items(), strict=True
    ):
        counts = ablation.counts()
        for kind, colour, marker in (("top", "#D55E00", "o"), ("random", "#0072B2", "s")):
            scores = [ablation.needle_score(kind, count) for count in counts]
            values = [score["value"] for score in scores]
            below = [score["value"] - score["low"] for score in scores]
            above = [score["high"] - score["value"] for score in scores]
            label = "retrieval heads" if kind == "top" else "other heads, mean of draws"
            axes.errorbar(counts, values, [below, above], color=colour, marker=marker, capsize=3, label=label)
        for count in counts[1:]:
            draws = ablation.draws(count)
            axes.plot(
                [count] * len(draws),
                draws,
                "x",
                color="#56B4E9",
                label="one draw" if count == counts[1] else None,
            )
        axes.set_title(f"{name} ({len(ablation.cells)} prompts)", fontsize=9)
        axes.set_xticks(counts)
        axes.set_ylim(0, 105)
        axes.set_xlabel("heads masked", fontsize=9)
    figure.axes[0].set_ylabel("needle score (ROUGE-1 recall, %)", fontsize=9)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.savefig(path, dpi=140)


def _book(folder: Path, name: str) -> str:
    path = folder / f"{name}.txt"
    return read_haystack(path if path.exists() else folder / f"{name}.txt.gz")


def _seconds(log: Path) -> float:
    return sum(json.loads(line)["seconds"] for line in log.read_text(encoding="utf-8").splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--haystacks", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/heads"))
    parser.add_argument("--output", type=Path, default=Path("docs/studies/retrieval-heads"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    facts = machine()
    model, tokenizer = regaze.load(options.model, dtype=torch.float32)
    with console.progress() as report:
        heads = find(model, tokenizer, options.haystacks, options.work, report)
        heads.save(options.output / "heads.json")
        plot.head_scores(
            heads.mean(),
            marked=heads.top(10),
            label="retrieval score (paper)",
            title=heads.about["model"],
            path=options.output / "heads.png",
        )
        text = _book(options.haystacks, OTHER_TEXT)
        ablations = {
            name: mask(model, tokenizer, heads, text, name, options.work, report) for name in ABLATIONS
        }
    draw(ablations, options.output / "masking.png")
    study = {
        "machine": facts,
        "seconds": {log.stem: round(_seconds(log)) for log in sorted(options.work.glob("*.jsonl"))},
        "agreement": agreement(heads),
        "memory": memory(model, (1000, 2000, 4000, 8000)),
        "masking": {name: ablation.to_dict() for name, ablation in ablations.items()},
    }
    text = json.dumps(study, indent=1, ensure_ascii=False) + "\n"
    (options.output / "study.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
