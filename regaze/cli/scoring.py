"""Figures of existing answers."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from regaze.cli.questions import QuestionSource, make_benchmark, make_judge
from regaze.errors import InputError
from regaze.eval.answer_fields import choose_answer_field, items_from_rows, label_of, one_per_split
from regaze.eval.answer_files import (
    AnswerRow,
    group_by_condition,
    is_mme,
    mme_files,
    read_answer_rows,
    rows_of_benchmark,
)
from regaze.eval.answer_join import Join, join_rows
from regaze.eval.benchmarks.common.yes_no import LABELS
from regaze.eval.benchmarks.pope.benchmark import Pope
from regaze.eval.benchmarks.pope.published import SPLITS
from regaze.eval.catalogue import BED, DEMO, HUB, benchmark_class, find_constructor
from regaze.eval.comparison.conditions import PLAIN, AnswerSet, compare_conditions, non_share_figures
from regaze.eval.run.answers import OPENING
from regaze.eval.run.results import finite
from regaze.toolkit.prompts.thinking import Continued

#: benchmarks that look for the folder of their images -> its usual name
_IMAGE_FOLDERS = {"pope": "images", "repope": "images", "textvqa": "train_images"}


def score_answers(
    benchmark: str,
    answers: Path,
    against: Path | None,
    answer_key: str | None,
    source: QuestionSource,
    judge: str | None,
    seed: int,
) -> dict[str, Any]:
    """The figures of a file of answers, by condition; arguments are the options of `regaze score`.

    Raises:
        InputError: a file that cannot be read, or answers that do not fit the questions.
    """
    benchmark_class(benchmark)  # an unknown name is refused before its file is read
    conditions = group_by_condition(rows_of_benchmark(read_answer_rows(answers), benchmark))
    if against is not None:
        plain = group_by_condition(rows_of_benchmark(read_answer_rows(against), benchmark))
        conditions = _paired(conditions, plain, answers, against)
    if benchmark == "mme" and not source.is_given and is_mme(answers):  # they bring the questions
        folder, tasks = answers if answers.is_dir() else answers.parent, [f.stem for f in mme_files(answers)]
        source = replace(source, data=str(folder), images=folder, bench=[f"tasks={json.dumps(tasks)}"])
    task = _benchmark(benchmark, source, judge, next(iter(conditions.values())), answer_key)
    joins = {label: _join(task, given, answer_key) for label, given in conditions.items()}
    outcomes = {}
    for label, join in joins.items():
        field = choose_answer_field(join.rows, task.items, answer_key)
        texts = (Continued.of(row.text(field), row.text(OPENING)) for row in join.rows)
        outcomes[label] = AnswerSet(tuple(texts))
        is_template = not any(map(str.strip, outcomes[label].answers)) and all(
            label_of(row, field) for row in join.rows
        )
        if answer_key is None and is_template:
            raise InputError(
                f"{answers}: no line has a text under {field!r}, as in a template for answers; --answer-key "
                f"names another field, or {field} if the model said nothing"
            )
    if PLAIN not in outcomes:  # one method's answers by themselves
        if len(outcomes) > 1:
            raise InputError(f"{answers}: answers of {', '.join(outcomes)} without those of the plain model")
        outcomes = {PLAIN: next(iter(outcomes.values()))}
    return finite(
        {
            "benchmark": task.describe(),
            "joined_by": {label: join.by for label, join in joins.items()},
            "numbers": non_share_figures(task),
            **compare_conditions(task, outcomes, {}, seed),
        }
    )


def _benchmark(
    name: str, source: QuestionSource, judge: str | None, rows: Sequence[AnswerRow], answer_key: str | None
) -> Any:
    """The answered questions: from the options, else POPE's from the file of answers."""
    if name == "pope" and not source.is_given:
        rows = one_per_split(rows, SPLITS)
        field = choose_answer_field(rows, (), answer_key)
        if all(label_of(row, field) for row in rows):
            return Pope(items_from_rows(rows, field, LABELS), suffix="")
    return make_benchmark(name, _without_images(name, source), make_judge(judge))


def _join(task: Any, rows: Sequence[AnswerRow], answer_key: str | None) -> Join:
    """Answers with their questions; of too few the error says how to score a part of a benchmark."""
    try:
        return join_rows(task, rows, answer_key or "")
    except InputError as error:
        if len(rows) >= len(task.items):
            raise
        if task.name == "pope":
            part = (
                "--split and --limit leave questions out; lines with their right answer as 'label' need none"
            )
        elif task.name == "repope" and not task.corrected_only:
            part = (
                "--bench corrected_only=true leaves out the questions that RePOPE dropped, and POPE's figures"
            )
        else:
            part = "--limit and --bench leave questions out (`regaze benchmarks` lists the options)"
        raise InputError(f"{error}; {part}") from None


def _without_images(name: str, source: QuestionSource) -> QuestionSource:
    """The source, also where the images are not at hand: their names are enough here."""
    if source.data == HUB and source.images is None:
        from_hub = find_constructor(benchmark_class(name), "from_hub")
        takes_images = from_hub is not None and "images" in inspect.signature(from_hub).parameters
        return replace(source, images=Path()) if takes_images else source
    is_folder = source.data not in (None, DEMO, BED)
    if name in _IMAGE_FOLDERS and is_folder and source.images is None:
        folder = Path(str(source.data))
        if not os.path.isdir(folder / _IMAGE_FOLDERS[name]):
            return replace(source, images=folder)
    return source


def _paired(
    edited: Mapping[str, list[AnswerRow]],
    plain: Mapping[str, list[AnswerRow]],
    edited_path: Path,
    plain_path: Path,
) -> dict[str, list[AnswerRow]]:
    """{"plain": answers, label: answers} of two files with one condition each."""
    for path, found in ((edited_path, edited), (plain_path, plain)):
        if len(found) != 1:
            raise InputError(
                f"{path} holds answers of {', '.join(found)}; --against compares two files of one"
            )
    label = next(iter(edited))
    return {PLAIN: next(iter(plain.values())), "edited" if label == PLAIN else label: edited[label]}
