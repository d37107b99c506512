"""What `regaze heads` reads, writes and prints."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from regaze.cli import console
from regaze.errors import InputError, RegazeError
from regaze.interventions.retrieval_heads import (
    NEEDLES,
    Needle,
    RetrievalHeads,
    find_retrieval_heads,
    read_haystack,
)
from regaze.reading import parse_json, read_text
from regaze.toolkit import plot
from regaze.writing import require_writable

__all__ = ["find_retrieval_heads"]

#: Files of a search.
TRIALS, HEADS, RELEASED, PICTURE = "trials.jsonl", "heads.json", "heads_released.json", "heads.png"
#: The paper's thresholds of retrieval heads and of strong ones.
THRESHOLDS = (0.1, 0.5)


def check_folder(folder: Path) -> None:
    """Raise InputError where one of the files of a search cannot be written; nothing is made."""
    for name in (TRIALS, HEADS, RELEASED, PICTURE):
        require_writable(folder / name)


def read_haystacks(paths: Sequence[Path]) -> list[str]:
    """Long texts. Raises InputError for a file that cannot be read."""
    return [read_haystack(path) for path in paths]


def read_needles(path: Path | None) -> list[Needle]:
    """Needles from a JSON file, the built-in ones for None. Raises InputError: a file without needles."""
    if path is None:
        return list(NEEDLES)
    entries = parse_json(read_text(path, "--needles "), f"--needles {path}")
    try:
        if not entries:
            raise TypeError("it has none")
        return [Needle(**entry) for entry in entries]
    except RegazeError as error:
        raise InputError(f"--needles {path}: {error}") from error
    except TypeError as error:
        example = asdict(NEEDLES[0])
        raise InputError(
            f"--needles {path}: {error}; expected a list of objects such as {json_module.dumps(example)}"
        ) from error


def show(found: RetrievalHeads, score: Any, top: int) -> None:
    """Print the number of retrieval heads, and a table of the best."""
    out, mean, about = console.stdout(), found.mean(score), found.about
    out.print(
        f"{about['model']}: {about['trials_succeeded']} of {about['trials_run']} trials succeeded; "
        f"{mean.numel()} heads",
        soft_wrap=True,
    )
    for threshold in THRESHOLDS:
        count = int((mean >= threshold).sum())
        out.print(f"  score at least {threshold}: {count} ({count / mean.numel():.1%})")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("layer", "head", "paper score", "released score", "active in"):
        table.add_column(heading, justify="right")
    paper, released, frequency = found.mean("paper"), found.mean("released"), found.frequency()
    for head in found.top(min(top, mean.numel()), score):
        figures = (f"{paper[head]:.3f}", f"{released[head]:.3f}", f"{frequency[head]:.0%}")
        table.add_row(*map(str, head), *figures)
    out.print(table)


def write(found: RetrievalHeads, folder: Path, score: Any, top: int) -> None:
    """Write both head files and the picture."""
    found.save(folder / HEADS)
    found.save_released(folder / RELEASED)
    plot.head_scores(
        found.mean(score),
        marked=found.top(min(top, found.mean(score).numel()), score),
        label=f"retrieval score ({score})",
        title=str(found.about["model"]),
        path=folder / PICTURE,
    )


def summary(found: RetrievalHeads, folder: Path) -> dict[str, Any]:
    """What `--json` prints."""
    keep = ("model", "trials_run", "trials_succeeded")
    return {
        **{key: found.about[key] for key in keep},
        "file": str(folder / HEADS),
        "paper": found.mean("paper").tolist(),
        "released": found.mean("released").tolist(),
        "frequency": found.frequency().tolist(),
    }
