"""`regaze score`: figures of existing answers, from this package or another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from regaze.cli import options, tables
from regaze.cli.questions import QuestionSource, make_benchmark, make_judge
from regaze.errors import InputError
from regaze.eval.answer_files import (
    AnswerRecord,
    group_by_condition,
    items_from_answers,
    match_answers,
    read_answers,
)
from regaze.eval.benchmarks.common.yes_no import LABELS
from regaze.eval.benchmarks.pope.benchmark import Pope
from regaze.eval.comparison.conditions import PLAIN, AnswerSet, compare_conditions, non_share_figures
from regaze.eval.run.results import dumps, finite


def score(
    benchmark: Annotated[str, typer.Argument(help="The benchmark whose scorers are used.")],
    answers: Annotated[
        Path,
        typer.Argument(
            help="answers.jsonl of a run, or a file of lmms-eval, VLMEvalKit or a method repository."
        ),
    ],
    against: Annotated[
        Path | None, typer.Option(help="Answers of the plain model to the same questions, to compare with.")
    ] = None,
    data: options.Data = None,
    images: options.Images = None,
    questions: options.Questions = None,
    split: options.Split = None,
    bench: options.Bench = None,
    limit: options.Limit = None,
    judge: options.Judge = None,
    seed: options.Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """Score answers from a file; nothing is generated.

    A file of yes/no answers that also has the right ones (a run of this package, lmms-eval, VLMEvalKit) is
    enough by itself. For other files say where the questions are, by --data, --images or --questions.
    """
    conditions = group_by_condition(read_answers(answers))
    if against is not None:
        conditions = _paired(conditions, group_by_condition(read_answers(against)), answers, against)
    source = QuestionSource(data, images, questions, split, bench, limit)
    task = _benchmark(benchmark, source, judge, next(iter(conditions.values())))
    outcomes = {label: AnswerSet(tuple(match_answers(task, given))) for label, given in conditions.items()}
    if PLAIN not in outcomes:  # one method's answers by themselves
        if len(outcomes) > 1:
            raise InputError(f"{answers}: answers of {', '.join(outcomes)} without those of the plain model")
        outcomes = {PLAIN: next(iter(outcomes.values()))}
    scored = finite(
        {
            "benchmark": task.describe(),
            "numbers": non_share_figures(task),
            **compare_conditions(task, outcomes, {}, seed),
        }
    )
    typer.echo(dumps(scored) if json else tables.scored(scored))


def _benchmark(name: str, source: QuestionSource, judge: str | None, given: Sequence[AnswerRecord]) -> Any:
    """The answered questions: from the options, else POPE's from the file of answers."""
    if name == "pope" and not source.is_given and all(answer.label for answer in given):
        return Pope(items_from_answers(given, LABELS), suffix="")
    return make_benchmark(name, source, make_judge(judge))


def _paired(
    edited: Mapping[str, list[AnswerRecord]],
    plain: Mapping[str, list[AnswerRecord]],
    edited_path: Path,
    plain_path: Path,
) -> dict[str, list[AnswerRecord]]:
    """{"plain": answers, label: answers} of two files with one condition each."""
    for path, found in ((edited_path, edited), (plain_path, plain)):
        if len(found) != 1:
            raise InputError(
                f"{path} holds answers of {', '.join(found)}; --against compares two files of one"
            )
    label = next(iter(edited))
    return {PLAIN: next(iter(plain.values())), "edited" if label == PLAIN else label: edited[label]}
