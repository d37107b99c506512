"""Seconds and peak memory of reading the worst files that the limits of `regaze.reading` let in.

    python benchmarks/reader_limits.py [SHARE] [NAME...] [--json FILE]

Each file has SHARE (1 by default) of the largest size and is read in a process of its own. Prints a line per
file: bytes on disk, CPU seconds, peak memory beyond that of the imports, and how the reading ended.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine

from regaze import reading
from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.answer_files import read_answer_rows

#: Seconds after which a reading is ended.
TIMEOUT = 60.0


def _gzip_of_nothing(size: int) -> bytes:
    return gzip.compress(b"") * (size // len(gzip.compress(b"")))


def _columns(size: int) -> bytes:
    """An object of columns as pandas writes it, each column empty but for the first."""
    half = size // 32
    first = b",".join(b'"%d":"x"' % n for n in range(half // 2))
    return b'{"a":{' + first + b"}," + b",".join(b'"%d":{}' % n for n in range(half // 2)) + b"}"


#: name of the file, its content of about so many bytes
JSON: dict[str, Callable[[int], bytes]] = {
    "json-one-text.json": lambda n: b'"' + b"x" * (n - 2) + b'"',
    "json-one-wide-text.json": lambda n: b'"' + "\U0001f642".encode() + b"x" * (n - 6) + b'"',
    "json-escapes.json": lambda n: b'"' + b"\\n" * (n // 2 - 1) + b'"',
    "json-surrogates.json": lambda n: b'"' + b"\\ud83d\\ude42" * (n // 12 - 1) + b'"',
    "json-digits.json": lambda n: b"0." + b"7" * (n - 2),
    "json-exponent.json": lambda n: b"1e" + b"9" * (n - 2),
    "json-spaces.json": lambda n: b"[" + b" " * (n - 2) + b"]",
    "json-floats.json": lambda n: b"[" + b",".join([b"1.7976931348623157e+308"] * (n // 24)) + b"]",
    "json-ones.json": lambda n: b"[" + b"1," * (n // 16 - 8) + b"1]",
    "json-lists.json": lambda n: b"[" + b"[]," * (n // 64 - 8) + b"[]]",
    "json-objects.json": lambda n: b"[" + b",".join(b'{"%d":1.5}' % k for k in range(n // 64 - 8)) + b"]",
    "json-keys.json": lambda n: b"{" + b",".join(b'"k%d":0' % k for k in range(n // 16 - 8)) + b"}",
    "json-torn.json": lambda n: b"[" + b'"x",\n' * (n // 16 - 8),
    "lines-spaces.jsonl": lambda n: b"[" + b" " * (n - 3) + b"]\n",
    "lines-short.jsonl": lambda n: b"{}\n" * 999_000,
    "lines-array.jsonl": lambda n: b"[" + b"1," * (n // 16 - 8) + b"1]",
    "lines-wide.jsonl": lambda n: ('{"a":"\U0001f642' + "x" * 100 + '"}\n').encode() * (n // 120),
    "answers-columns.json": _columns,
    "table-rows.tsv": lambda n: b"a\tb\n" + b"x\ty\n" * 990_000,
    "table-columns.tsv": lambda n: b"\t".join(b"%d" % k for k in range(n // 9)) + b"\n",
    "table-fields.tsv": lambda n: b"a" + b"\t" * n,
    "gzip-of-nothing.txt": _gzip_of_nothing,
    "gzip-bomb.txt": lambda n: gzip.compress(b"0" * n),
    "gzip-larger-bomb.txt": lambda n: gzip.compress(b"0" * (2 * n)),
    "text-lines.txt": lambda n: b"\n" * min(n, 999_000),
}
#: the largest document of YAML is small
YAML: dict[str, Callable[[int], bytes]] = {
    "yaml-sixties.yaml": lambda n: b"a: 1" + b":1" * (n // 2 - 4),
    "yaml-hexadecimal.yaml": lambda n: b"a: 0x" + b"f" * (n - 8),
    "yaml-binary.yaml": lambda n: b"a: 0b" + b"1" * (n - 8),
    "yaml-list.yaml": lambda n: b"a: [" + b"1," * (n // 2 - 8) + b"1]",
    "yaml-objects.yaml": lambda n: b"{a: {" + b"},b: {" * (n // 6 - 8) + b"}}",
    "yaml-keys.yaml": lambda n: b"\n".join(b"%d: " % k for k in range(n // 9)),
    "yaml-merges.yaml": lambda n: (
        b"a0: &a0 {" + b",".join(b"%d: 1" % k for k in range(n // 10)) + b"}\n"
        + b"".join(b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (k, k, k - 1, k - 1) for k in range(1, 6))
    ),
    "yaml-texts.yaml": lambda n: b'a: "' + b"\\x41" * (n // 4 - 4) + b'"',
    "yaml-dashes.yaml": lambda n: b"- " * (n // 2 - 1),
    "yaml-questions.yaml": lambda n: b"? " * (n // 2 - 1),
    "yaml-anchors.yaml": lambda n: b"\n".join(b"k%d: &a%d 1" % (k, k) for k in range(n // 18)),
    "yaml-date.yaml": lambda n: b"a: 2001-01-01 " + b"1" * (n - 20),
    "yaml-float.yaml": lambda n: b"a: 1_" + b"1_" * (n // 2 - 8) + b".x",
    "yaml-comments.yaml": lambda n: b"#\n" * (n // 2 - 1),
}  # fmt: skip


def read(path: Path) -> None:
    """Read a file as regaze does a file of this name."""
    kind = path.name.split("-")[0]
    if kind == "json":
        files.read_json(path)
    elif kind == "lines":
        files.read_records(path)
    elif kind == "yaml":
        reading.parse_yaml(reading.read_text(path), path)
    elif kind in ("answers", "table"):
        read_answer_rows(path)
    else:
        reading.read_text(path)


def measure(path: Path) -> None:
    """Read one file and print (CPU seconds, peak MiB beyond the imports, outcome) as JSON."""
    before, start = peak(), time.process_time()
    try:
        read(path)
        outcome = "read"
    except InputError as error:
        outcome = str(error).replace(str(path), path.name)[:80]
    print(json.dumps((time.process_time() - start, peak() - before, outcome)))


def peak() -> float:
    """Peak memory of this process in MiB; ru_maxrss would be that of its parent, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measured(name: str, share: float) -> dict[str, Any]:
    """Write a file, read it in a process of its own, and what that took."""
    make, limit = (YAML[name], reading.MAX_YAML_BYTES) if name in YAML else (JSON[name], reading.MAX_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(make(int(share * limit)))
        command = [sys.executable, __file__, "--read", str(path)]
        try:
            done = subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)
            seconds, memory, outcome = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            seconds, memory, outcome = TIMEOUT, float("nan"), "not read in time"
        return {
            "file": name,
            "bytes": path.stat().st_size,
            "seconds": round(seconds, 2),
            "mib": round(memory),
            "outcome": outcome,
        }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("share", nargs="?", type=float, default=1.0, help="of the largest size")
    parser.add_argument("names", nargs="*", help="files to read (all)")
    parser.add_argument("--json", type=Path, help="file to write")
    given = parser.parse_args()
    facts, rows = machine(), []
    print(f"{'file':<26} {'bytes':>12} {'seconds':>8} {'MiB':>7}  outcome")
    for name in given.names or (*JSON, *YAML):
        row = measured(name, given.share)
        rows.append(row)
        print(
            f"{name:<26} {row['bytes']:>12} {row['seconds']:>8.2f} {row['mib']:>7}  {row['outcome']}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        measure(Path(sys.argv[2]))
    else:
        main()
