"""`regaze score`: figures of answers that are there already, whoever generated them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from regaze.cli import options, running, tables
from regaze.errors import InputError


def score(
    ctx: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="Whose scorers to use.")],
    answers: Annotated[
        Path,
        typer.Argument(
            help="answers.jsonl of a run, or a file of lmms-eval, VLMEvalKit or a method repository."
        ),
    ],
    against: Annotated[
        Path | None, typer.Option(help="Answers of the plain model to the same questions, to compare with.")
    ] = None,
    data: running.Data = None,
    images: running.Images = None,
    questions: Annotated[
        Path | None, typer.Option(help="pope: the questions in its own format, with --images.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="pope: the split of the shipped scenes.")] = None,
    bench: running.Bench = None,
    limit: running.Limit = None,
    judge: running.Judge = None,
    seed: options.Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """Score answers from a file; nothing is generated.

    A file of yes/no answers that also has the right ones (a run of this package, lmms-eval, VLMEvalKit) needs
    nothing else; for anything else say where the questions are.
    """
    from regaze.eval import export
    from regaze.eval.comparison.conditions import PLAIN, AnswerSet, compare_conditions, non_share_figures
    from regaze.eval.run.results import dumps, finite

    given = export.conditions(export.read(answers))
    if against is not None:
        given = _paired(given, export.conditions(export.read(against)), answers, against)
    first = next(iter(given.values()))
    task = _benchmark(benchmark, ctx.params, first)
    outcomes = {label: AnswerSet(tuple(export.join(task, each))) for label, each in given.items()}
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


def _benchmark(name: str, settings: dict[str, Any], given: Any) -> Any:
    """The questions that were answered: where the options say, else as the file tells them."""
    from regaze.eval import export
    from regaze.eval.benchmarks.common.yes_no import LABELS
    from regaze.eval.benchmarks.pope.benchmark import PopeItems

    named = any(settings[key] for key in ("data", "images", "questions", "split", "bench", "limit"))
    if name == "pope" and not named and all(each.label for each in given):
        return PopeItems(export.items_of(given, LABELS), suffix="")
    return running.benchmark(name, settings, running.judge_of(settings["judge"]))


def _paired(edited: Any, plain: Any, edited_path: Path, plain_path: Path) -> dict[str, Any]:
    """{"plain": answers, label: answers} of two files with one condition each."""
    for path, found in ((edited_path, edited), (plain_path, plain)):
        if len(found) != 1:
            raise InputError(
                f"{path} holds answers of {', '.join(found)}; --against compares two files of one"
            )
    label, ours = next(iter(edited)), next(iter(plain.values()))
    return {"plain": ours, "edited" if label == "plain" else label: edited[label]}
