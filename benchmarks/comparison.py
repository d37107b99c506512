"""Compare methods with each other and with their controls on the bundled model; keep what the pages show.

    python benchmarks/comparison.py pope --methods docs/comparison-methods.json \\
        --json benchmarks/results/comparison-pope.json

The comparison is `regaze compare`'s, into a folder of its own (an interrupted one goes on with the same
line); the file holds what the pages show of its results.json: the figures of the leading scorer, or of the
damage check, which is a comparison on `mmstar`, without controls. Directions that a method names and that
are not there are fitted first, by `regaze fit` on the demo's data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine

from regaze.eval.report import tables

CONTROLLED = ["--controls", "--no-damage-check"]
OPTIONS = {
    "pope": ["--bench", 'splits=["adversarial"]', *CONTROLLED],
    "captions": CONTROLLED,
    "mmstar": [],
}


def shown(results: dict[str, Any], name: str) -> dict[str, Any]:
    """What the pages need of a results.json about this benchmark, and of the damage check if it is that."""
    benchmark = results["benchmarks"][name]
    split, scorer = tables.leading_scorer(benchmark)
    conditions = (*benchmark["methods"].values(), *benchmark.get("controls", {}).values())
    for entry in (benchmark["plain"], *conditions):
        if entry.get("figures"):
            figures = entry["figures"][split]
            kept = ("questions", "images", scorer, "disagreement")
            entry["figures"] = {split: {name: figures[name] for name in kept if name in figures}}
    facts = machine()
    return {
        "machine": {name: facts[name] for name in ("cpu", "cores")},
        "versions": results["versions"],
        "created": results["created"],
        "dtype": results["model"].get("dtype", "?"),
        **({"damage": damage} if (damage := results.get("damage")) else {"benchmark": benchmark}),
    }


def fit(methods: Path) -> None:
    """Fit the directions that the methods in a file name, where they are not there yet."""
    for entry in json.loads(methods.read_text(encoding="utf-8")):
        path = entry.get("directions")
        if path is not None and not Path(path).exists():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, "-m", "regaze", "fit", entry["method"], "-o", path], check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=OPTIONS)
    parser.add_argument("--methods", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="for the answers (out/comparison-NAME)")
    parser.add_argument("--limit", type=int, help="so many questions, to try it; nothing to keep")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    given = parser.parse_args()
    fit(given.methods)
    folder = given.folder or Path("out") / f"comparison-{given.benchmark}"
    command = [sys.executable, "-m", "regaze", "compare", given.benchmark, *OPTIONS[given.benchmark]]
    command += ["--methods", str(given.methods), "--batch-size", "32", "--output", str(folder)]
    command += ["--limit", str(given.limit)] if given.limit else []
    subprocess.run(command, check=True)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    given.json.write_text(json.dumps(shown(results, given.benchmark), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
