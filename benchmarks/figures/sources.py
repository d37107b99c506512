"""The results that pages show, each with the command that measures it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

from figures.markdown import table

__all__ = ["results"]
ROOT = Path(__file__).resolve().parents[2]


class Source(NamedTuple):
    """A file of results.

    Attributes:
        kind: "demo" needs the bundled model alone, "timing" an idle machine besides, "vllm" these two and
            an environment with vLLM, "material" what is not in the repository, "suite" all tests.
    """

    file: str
    kind: str
    command: str


_COMPARE = (
    "python benchmarks/comparison.py {0} --methods docs/comparison-methods.json "
    "--json benchmarks/results/comparison-{0}.json"
)
_MEASURE = "python -m regaze.demo.training.measure --scenes 400 --seed {} --output docs/assets/{}"
SOURCES = (
    Source("benchmarks/results/comparison-pope.json", "demo", _COMPARE.format("pope")),
    Source("benchmarks/results/comparison-captions.json", "demo", _COMPARE.format("captions")),
    Source("benchmarks/results/comparison-mmstar.json", "demo", _COMPARE.format("mmstar")),
    Source(
        "benchmarks/results/guide.json",
        "demo",
        "python benchmarks/guide.py --json benchmarks/results/guide.json",
    ),
    Source(
        "benchmarks/results/sass.json",
        "demo",
        "python benchmarks/sass.py --output benchmarks/results/sass.json",
    ),
    Source(
        "benchmarks/results/attend-cases.json",
        "demo",
        "python benchmarks/attend_cases.py --cases 10000 --json benchmarks/results/attend-cases.json",
    ),
    Source(
        "benchmarks/results/method-families.json",
        "demo",
        "python tests/support/method_families.py",
    ),
    Source(
        "benchmarks/results/overhead.json",
        "timing",
        "python benchmarks/overhead.py --output benchmarks/results/overhead.json",
    ),
    Source(
        "benchmarks/results/attention-cpu.json",
        "timing",
        "python benchmarks/attention.py --quick --json benchmarks/results/attention-cpu.json",
    ),
    Source(
        "benchmarks/results/methods.json",
        "timing",
        "python benchmarks/methods.py --output benchmarks/results/methods.json",
    ),
    Source(
        "benchmarks/results/pruning.json",
        "timing",
        "python benchmarks/pruning.py --output benchmarks/results/pruning.json",
    ),
    Source(
        "benchmarks/results/evaluate.json",
        "timing",
        "python benchmarks/evaluate.py --output benchmarks/results/evaluate.json",
    ),
    Source(
        "benchmarks/results/serving.json",
        "vllm",
        "python benchmarks/serving.py --output benchmarks/results/serving.json",
    ),
    Source(
        "benchmarks/results/analysis.json",
        "timing",
        "python benchmarks/analysis.py --json benchmarks/results/analysis.json",
    ),
    Source(
        "benchmarks/results/choices.json",
        "material",
        "python benchmarks/choices.py --model SMOLLM2 --json benchmarks/results/choices.json",
    ),
    Source(
        "docs/assets/bed-perfect.json",
        "demo",
        "python -m regaze.bed.training.perfect --output docs/assets/bed-perfect.json",
    ),
    Source(
        "docs/assets/bed-measured.json",
        "material",
        "python -m regaze.bed.training.measure --base FOLDER --output docs/assets/bed-measured.json",
    ),
    Source(
        "benchmarks/results/bed.json",
        "material",
        "python benchmarks/bed.py sinks heads hallucination retrieval",
    ),
    Source(
        "docs/assets/audit.json",
        "material",
        "regaze audit --plan PLAN --output out/audit && cp out/audit/audit.json docs/assets/audit.json",
    ),
    Source("docs/assets/demo-measured.json", "material", _MEASURE.format(1, "demo-measured.json")),
    Source(
        "docs/assets/demo-measured-seed2.json", "material", _MEASURE.format(2, "demo-measured-seed2.json")
    ),
    Source(
        "regaze/demo/model/config.json",
        "material",
        "python -m regaze.demo.training.train --output regaze/demo/model --seed 0",
    ),
    Source(
        "regaze/demo/model/training_log.csv",
        "material",
        "python -m regaze.demo.training.train --output regaze/demo/model --seed 0",
    ),
    Source(
        "benchmarks/results/launch.json",
        "timing",
        "python benchmarks/launch.py --output benchmarks/results/launch.json",
    ),
    Source(
        "benchmarks/results/reader-limits.json",
        "demo",
        "python benchmarks/reader_limits.py --json benchmarks/results/reader-limits.json",
    ),
    Source("benchmarks/results/tests.json", "suite", "make counts"),
    Source(
        "docs/assets/real-models/figures.json",
        "material",
        "python benchmarks/recordings.py --smollm SMOLLM2 --gemma GGUF --whisper TINY --vocabulary FILE",
    ),
    Source("docs/studies/seeing/study.json", "material", "python benchmarks/seeing.py"),
    Source("docs/studies/seeing/objects.json", "material", "python benchmarks/objects.py"),
    Source("docs/studies/seeing/speech.json", "material", "python benchmarks/speech.py WHISPER"),
    Source(
        "docs/studies/retrieval-heads/heads.json",
        "material",
        "python benchmarks/heads.py SMOLLM2 --haystacks BOOKS",
    ),
    Source(
        "docs/studies/retrieval-heads/study.json",
        "material",
        "python benchmarks/heads.py SMOLLM2 --haystacks BOOKS",
    ),
)
#: what was read since it was last emptied
FILES: set[str] = set()


def read(file: str) -> Any:
    """The content of a file of results."""
    FILES.add(file)
    text = (ROOT / file).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines())) if file.endswith(".csv") else json.loads(text)


def results() -> str:
    """Every file of results that is there, with its command."""
    there = [source for source in SOURCES if (ROOT / source.file).exists()]
    rows = [[f"`{source.file}`", source.kind, f"`{source.command}`"] for source in there]
    return table(["results", "kind", "command"], rows)
