"""What the commands of docs/guide/evaluation.md print that take minutes: all tables, as cells.

    python benchmarks/guide.py --json benchmarks/results/guide.json

The commands are those on the page, in its order.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/guide/evaluation.md"
#: A command with a table below it that is written from the results.
COMMAND = re.compile(r"```bash\n(regaze [^\n]+)\n```\n\n<!-- figures: guide ")
#: The memory of a process that has done other things before differs from run to run.
MEMORY = re.compile(r"(?:, |^)memory [+-]\d+%")


def commands(page: str) -> list[str]:
    """The commands of the page whose tables are measured here."""
    return COMMAND.findall(page)


def tables(printed: str) -> list[list[list[str]]]:
    """The Markdown tables of a text: rows of cells, the heading first, the rule left out."""
    found = re.findall(r"(?:^\|.*\|\n)+", printed, re.MULTILINE)
    return [[row for row in map(_cells, table.splitlines()) if set(row) != {"---"}] for table in found]


def _cells(line: str) -> list[str]:
    return [MEMORY.sub("", cell.strip()) for cell in line.strip("|").split("|")]


def measure() -> list[dict[str, Any]]:
    """Run the commands; per command its text and its tables."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for command in commands(PAGE.read_text(encoding="utf-8")):
            done = subprocess.run(
                [sys.executable, "-m", *shlex.split(command)],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            measured.append({"command": command, "tables": tables(done.stdout)})
    return measured


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    given.json.write_text(json.dumps(measure(), ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
