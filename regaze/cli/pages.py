"""Pages of questions that went wrong: what `regaze evaluate --html` adds to a run."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from regaze.cli import console
from regaze.errors import BadParameterError, InputError

if TYPE_CHECKING:
    from regaze import Gaze
    from regaze.eval.benchmarks.common.base import Benchmark, Item
    from regaze.eval.run.runner import EvalTask

INDEX, PAGES = "failures.html", "pages"
#: bytes of a page: a folder of a hundred is still easy to hand on
_LIMIT = 2_000_000


def write(
    gaze: Gaze, tasks: Sequence[EvalTask], methods: Mapping[str, Any], folder: Path, most: int
) -> Path | None:
    """Write a page for each of the first questions that went wrong, and an index that links to them.

    Wrong is a yes/no answer that is not the label, of the plain model or under a method; of questions without
    such a label, an answer that a method changed. Those that a method changed come first.

    Args:
        folder: of a complete run; its answers.jsonl is read.
        most: pages per benchmark.

    Returns:
        The index; None where nothing went wrong.

    Raises:
        InputError: the folder cannot be read or written.
    """
    from regaze.toolkit.viewer import answer_page

    given = _answers(folder)
    rows: list[dict[str, Any]] = []
    for task in tasks:
        for item, answers in _wrong(task.benchmark, given.get(task.benchmark.name, {}))[:most]:
            prompt = task.benchmark.prompt(item)
            length = item.max_new_tokens or task.generate_kwargs["max_new_tokens"]
            links = {}
            for label, method in (methods or {"plain": None}).items():
                active = [] if method is None else [method]
                path = Path(PAGES) / f"{_file_name(task.benchmark.name, item.key, label)}.html"
                (folder / PAGES).mkdir(exist_ok=True)
                try:
                    page = answer_page(
                        gaze, item.images, prompt, *active, max_new_tokens=length, limit=_LIMIT
                    )
                except BadParameterError as error:  # a method that asks in its own way
                    console.say(f"no page of {item.key} under {label}: {error}")
                    continue
                page.save(folder / path)
                links[label] = path.as_posix()
            rows.append({"benchmark": task.benchmark.name, "item": item, "answers": answers, "links": links})
    if not rows:
        return None
    index = folder / INDEX
    index.write_text(_index(rows), encoding="utf-8")
    return index


def _answers(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """By benchmark and item: the answer under each condition."""
    given: dict[str, dict[str, dict[str, str]]] = {}
    try:
        lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"answers in {folder} cannot be read: {error.strerror}") from error
    for row in map(json.loads, lines):
        if "answer" in row:
            given.setdefault(row["benchmark"], {}).setdefault(row["key"], {})[row["condition"]] = row[
                "answer"
            ]
    return given


def _wrong(
    benchmark: Benchmark, given: Mapping[str, Mapping[str, str]]
) -> list[tuple[Item, Mapping[str, str]]]:
    """Items that went wrong under some condition, those first that a method changed."""
    found = []
    for item in benchmark.items:
        answers = given.get(item.key, {})
        changed = len(set(answers.values())) > 1
        label = item.label.strip().lower()
        wrong = label in ("yes", "no") and any(_said(answer) != label for answer in answers.values())
        if changed or wrong:
            found.append((not changed, item, answers))
    return [(item, answers) for _, item, answers in sorted(found, key=lambda entry: entry[0])]


def _said(answer: str) -> str | None:
    """The first yes or no of an answer."""
    found = re.search(r"\b(yes|no)\b", answer.lower())
    return found[1] if found else None


def _file_name(*parts: str) -> str:
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


def _index(rows: Sequence[Mapping[str, Any]]) -> str:
    """One page with a line per question."""
    conditions = list(dict.fromkeys(label for row in rows for label in row["answers"]))
    titles = ["benchmark", "question", "right answer", *conditions, "pages"]
    lines = ["<tr>" + "".join(f"<th>{html.escape(title)}</th>" for title in titles) + "</tr>"]
    lines += ["<tr>" + "".join(_cells(row, conditions)) + "</tr>" for row in rows]
    return _PAGE.format(count=len(rows), rows="\n".join(lines))


def _cells(row: Mapping[str, Any], conditions: Sequence[str]) -> Iterator[str]:
    item = row["item"]
    for text in (
        row["benchmark"],
        item.question,
        item.label,
        *(row["answers"].get(c, "") for c in conditions),
    ):
        yield f"<td>{html.escape(text)}</td>"
    links = (f'<a href="{quote(path)}">{html.escape(label)}</a>' for label, path in row["links"].items())
    yield f"<td>{' · '.join(links)}</td>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Questions that went wrong · regaze</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.3rem 1rem 0.3rem 0; }}
td {{ border-bottom: 1px solid #8884; }}
</style>
</head>
<body>
<h1>Questions that went wrong</h1>
<p>{count} questions whose answer is not the right one, or was changed by a method. Each page shows where the
  model looked.</p>
<table>
{rows}
</table>
</body>
</html>
"""
