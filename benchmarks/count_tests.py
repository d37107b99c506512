"""Counts of a full run of the tests, by file, from pytest's report.

    pytest -o junit_family=xunit1 --junitxml=out/tests.xml
    python benchmarks/count_tests.py out/tests.xml --json benchmarks/results/tests.json

`make counts` does both and writes docs/reliability.md anew.
"""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from machine import machine

KINDS = {"skipped": "skipped", "failure": "failed", "error": "failed"}


def counts(report: Path) -> dict[str, Any]:
    """What passed, was skipped and failed in each file of tests."""
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    files: dict[str, dict[str, int]] = {}
    for case in suite.iter("testcase"):
        kinds = [KINDS[child.tag] for child in case if child.tag in KINDS]
        file = case.get("file") or ""
        numbers = files.setdefault(file, {"passed": 0, "skipped": 0, "failed": 0})
        numbers[kinds[0] if kinds else "passed"] += 1
    facts = machine()
    return {
        "date": (suite.get("timestamp") or "")[:10],
        "seconds": round(float(suite.get("time") or 0)),
        "cores": facts["cores"],
        "torch": facts["torch"],
        "transformers": facts["transformers"],
        "files": dict(sorted(files.items())),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="of pytest, with -o junit_family=xunit1")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    given.json.write_text(json.dumps(counts(given.report), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
