"""Interactive pages of wrongly answered questions: what `regaze evaluate --html` adds to a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.cli import console
from regaze.errors import BadParameterError, InputError
from regaze.eval import Benchmark, EvalTask, Item
from regaze.eval.benchmarks.common.yes_no_reading import read_yes_no
from regaze.eval.report.sections import Link
from regaze.eval.run.answers import read_answers
from regaze.interventions import Method
from regaze.toolkit import Gaze
from regaze.toolkit.prompts.images import open_image
from regaze.toolkit.viewer import answer_page
from regaze.visible import file_names, html_environment
from regaze.writing import make_folder, replace_file

INDEX, PAGES = "failures.html", "pages"
#: Bytes of a page: a folder of a hundred pages is still small enough to share.
_PAGE_LIMIT = 2_000_000
#: Longest side of a picture in the index, in pixels.
_THUMBNAIL = 224

#: The answer under each condition.
Answers = Mapping[str, str]


@dataclass(frozen=True)
class Failure:
    """A line of the index: a question, its answers by condition, and its pages (file by label)."""

    benchmark: str
    item: Item
    answers: Answers
    pages: Mapping[str, str]

    @property
    def picture(self) -> str:
        """The first image as a small one inside the page; "" for none."""
        if self.item.image is None:
            return ""
        small = open_image(self.item.image).convert("RGB")
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        data = io.BytesIO()
        small.save(data, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def writer(
    tasks: Sequence[EvalTask], methods: Mapping[str, Method], count: int, thinking_tokens: int = 0
) -> Callable[[Gaze, Path], list[Link]] | None:
    """What adds `count` pages per benchmark to a run and says so; None for none.

    Raises:
        InputError: questions with messages before them, which the pages could not show.
    """
    if count and any(item.earlier for task in tasks for item in task.benchmark.items):
        raise InputError("--html shows questions without the messages before them: leave it out, or these")

    def add(gaze: Gaze, folder: Path) -> list[Link]:
        index = write(gaze, tasks, methods, folder, count, thinking_tokens)
        if index is None:
            console.info("no question was answered wrongly")
            return []
        console.info(f"pages of wrongly answered questions are in {index}")
        return [("Wrongly answered questions, to explore", index.name)]

    return add if count else None


def write(
    gaze: Gaze,
    tasks: Sequence[EvalTask],
    methods: Mapping[str, Method],
    folder: Path,
    count: int,
    thinking_tokens: int = 0,
) -> Path | None:
    """Write a page for each of the first wrongly answered questions, and an index that links to them.

    Wrong is a yes/no answer that is not the label, of the plain model or under a method; of questions without
    such a label, an answer that a method changed. Those that a method changed come first.

    Args:
        folder: of a complete run; its answers.jsonl is read.
        count: pages per benchmark. thinking_tokens: of the run.

    Returns:
        The index; None if no question was answered wrongly.

    Raises:
        InputError: the folder cannot be read or written.
    """
    answers = read_answers(folder)
    conditions: Mapping[str, Method | None] = methods or {"plain": None}
    failures = [
        Failure(
            task.benchmark.name,
            item,
            given,
            _write_pages(gaze, task, item, conditions, folder, thinking_tokens),
        )
        for task in tasks
        for item, given in _wrong(task.benchmark, answers.get(task.benchmark.name, {}))[:count]
    ]
    if not failures:
        return None
    index = folder / INDEX
    labels = list(dict.fromkeys(label for failure in failures for label in failure.answers))
    template = html_environment("regaze.cli").get_template("failures.html")
    page = template.render(failures=failures, conditions=labels)
    replace_file(index, page)
    return index


def _write_pages(
    gaze: Gaze,
    task: EvalTask,
    item: Item,
    conditions: Mapping[str, Method | None],
    folder: Path,
    thinking_tokens: int,
) -> dict[str, str]:
    """One page per condition; returns their paths in `folder` by label."""
    if item.video is not None:
        console.info(f"no page of {item.key}: it is about a video, and pages show pictures")
        return {}
    make_folder(folder / PAGES)
    prompt = task.benchmark.prompt(item)
    length = (item.max_new_tokens or task.generate_kwargs["max_new_tokens"]) + thinking_tokens
    paths, names = {}, file_names(f"{task.benchmark.name}-{item.key}-{label}" for label in conditions)
    for (label, method), name in zip(conditions.items(), names.values(), strict=True):
        active: list[Any] = [] if method is None else [method]
        try:
            page = answer_page(gaze, item.images, prompt, *active, max_new_tokens=length, limit=_PAGE_LIMIT)
        except BadParameterError as error:  # a method with several passes of its own
            console.info(f"no page of {item.key} under {label}: {error}")
            continue
        path = f"{PAGES}/{name}.html"
        page.save(folder / path)
        paths[label] = path
    return paths


def _wrong(benchmark: Benchmark, answers: Mapping[str, Answers]) -> list[tuple[Item, Answers]]:
    """Wrongly answered items and their answers, those first that a method changed."""
    found = []
    for item in benchmark.items:
        given = answers.get(item.key, {})
        changed = len(set(given.values())) > 1
        label = item.label.strip().lower()
        wrong = label in ("yes", "no") and any(read_yes_no(answer) != label for answer in given.values())
        if changed or wrong:
            found.append((not changed, item, given))
    return [(item, given) for _, item, given in sorted(found, key=lambda entry: entry[0])]
