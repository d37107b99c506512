"""What is promised, and which tests show it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures.markdown import table
from figures.sources import ROOT, read

__all__ = ["last_run", "promises"]
#: Counts of the last full run, by file; `benchmarks/count_tests.py` writes it.
COUNTS = "benchmarks/results/tests.json"

#: A promise, and the files and folders whose tests show it.
PROMISES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Edits equal the specification, to twice the rounding error of eager code",
        ("tests/kernels",),
    ),
    (
        "A wrapped model with nothing to do, or at neutral strength, is the plain model to the bit; a batch "
        "gives what its prompts give one by one; every token has its right role and cell",
        (
            "tests/toolkit/prompts/families",
            "tests/toolkit/model/test_generation.py",
            "tests/toolkit/test_wrap.py",
        ),
    ),
    ("A picture is seen as a viewer shows it, whole and at its place", ("tests/toolkit/prompts",)),
    ("Methods give what their equations say", ("tests/interventions",)),
    (
        "Nothing of a block is left in the model, whatever ends it",
        ("tests/toolkit/model/test_blocks.py",),
    ),
    (
        "An unknown release of transformers is tried before it is trusted",
        ("tests/toolkit/model/test_release_check.py", "tests/toolkit/model/test_compat.py"),
    ),
    (
        "Scorers give the figures of the official ones; a wrong label or a double id is refused",
        ("tests/eval/benchmarks",),
    ),
    (
        "Answers meet their questions by id, and what could be two fields is refused",
        ("tests/eval/test_answer_files.py", "tests/eval/test_answer_join.py"),
    ),
    (
        "Malformed files are one line with file and line number, within limits of size and time",
        (
            "tests/test_reading.py",
            "tests/eval/test_malformed.py",
            "tests/eval/test_corpus.py",
            "tests/toolkit/record/test_damaged_files.py",
        ),
    ),
    (
        "Text of models, labels, judges and plug-ins is shown, in every format, and never obeyed",
        ("tests/test_visible.py",),
    ),
    (
        "A signal ends the command with one line, at any moment, and the same command continues",
        ("tests/cli",),
    ),
    (
        "No answer is lost or doubled when a run is killed, a disk fills or a file is damaged",
        ("tests/eval/run", "tests/test_writing.py"),
    ),
    ("A judge's key leaves by no way, and its answers are bounded", ("tests/eval/judges",)),
    ("Intervals and tests are right", ("tests/eval/stats", "tests/eval/comparison")),
    (
        "Inside harnesses the plain model is theirs, and no cache mixes methods up",
        ("tests/eval/harness",),
    ),
    ("The wheel puts nothing beside the package", ("tests/test_package.py",)),
    (
        "Figures on pages are those of the results, and examples run as they stand there",
        ("tests/docs",),
    ),
    ("The rules of the house hold", ("tests/test_house.py",)),
)


def promises() -> str:
    """Every promise with its tests, and how many of these ran in the last full run."""
    counts = read(COUNTS)["files"] if (ROOT / COUNTS).exists() else None
    rows = []
    for promise, places in PROMISES:
        assert all((ROOT / place).exists() for place in places), places
        named = ", ".join(f"[{_short(place)}](../{place})" for place in places)
        rows.append([promise, named, *([] if counts is None else [_passed(counts, places)])])
    return table(["what is promised", "tests", *([] if counts is None else ["passed (skipped)"])], rows)


def last_run() -> str:
    """The last full run in a sentence, where one was recorded."""
    if not (ROOT / COUNTS).exists():
        return "No full run has been recorded yet: `make counts`."
    run = read(COUNTS)
    total = {
        kind: sum(file[kind] for file in run["files"].values()) for kind in ("passed", "skipped", "failed")
    }
    return (
        f"The last full run, {run['date']}, transformers {run['transformers']}, torch {run['torch']}: "
        f"{total['passed']:,} passed, {total['skipped']} skipped, {total['failed']} failed, in "
        f"{run['seconds'] / 60:.0f} minutes on {run['cores']} cores."
        + (f" {run['again']} of them failed at first, and ran again after a mend." if run["again"] else "")
    )


def _short(place: str) -> str:
    return Path(place).name if place.endswith(".py") else place.removeprefix("tests/") + "/"


def _passed(counts: dict[str, Any], places: tuple[str, ...]) -> str:
    found = list(_of(counts, places))
    passed, skipped = (sum(file[kind] for file in found) for kind in ("passed", "skipped"))
    return f"{passed:,}" + (f" ({skipped})" if skipped else "")


def _of(counts: dict[str, Any], places: tuple[str, ...]) -> Iterator[dict[str, int]]:
    for file, numbers in counts.items():
        if any(file == place or file.startswith(f"{place}/") for place in places):
            yield numbers
