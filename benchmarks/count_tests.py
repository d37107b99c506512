"""Counts of a full run of the tests, by file, from pytest's report.

    pytest -o junit_family=xunit1 --junitxml=out/tests.xml
    python benchmarks/count_tests.py out/tests.xml --json benchmarks/results/tests.json

`make counts` does both and writes docs/reliability.md anew. `--again` takes the report of a later run of
tests that failed: after a mend, their last result counts, and the page says how many they are.
"""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from machine import machine

KINDS = {"skipped": "skipped", "failure": "failed", "error": "failed"}


def counts(report: Path, again: Path | None = None) -> dict[str, Any]:
    """What passed, was skipped and failed in each file of tests; a failure may have a result in `again`."""
    suite, results = _results(report)
    failed = {test for test, kind in results.items() if kind == "failed"}
    later = {} if again is None else _results(again)[1]
    results |= {test: later[test] for test in failed if test in later}
    files: dict[str, dict[str, int]] = {}
    for (file, *_), kind in sorted(results.items()):
        files.setdefault(file, {"passed": 0, "skipped": 0, "failed": 0})[kind] += 1
    facts = machine()
    return {
        "date": (suite.get("timestamp") or "")[:10],
        "seconds": round(float(suite.get("time") or 0)),
        "cores": facts["cores"],
        "torch": facts["torch"],
        "transformers": facts["transformers"],
        "again": len(failed & later.keys()),
        "files": files,
    }


def _results(report: Path) -> tuple[ElementTree.Element, dict[tuple[str, ...], str]]:
    """The suite of a report, and what became of each test: by file, class and name."""
    suite, results = next(ElementTree.parse(report).getroot().iter("testsuite")), {}
    for case in suite.iter("testcase"):
        kinds = [KINDS[child.tag] for child in case if child.tag in KINDS]
        test = tuple(case.get(name) or "" for name in ("file", "classname", "name"))
        results[test] = kinds[0] if kinds else "passed"
    return suite, results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="of pytest, with -o junit_family=xunit1")
    parser.add_argument("--again", type=Path, help="the same of a later run of tests that failed")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    given.json.write_text(json.dumps(counts(given.report, given.again), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
