"""`regaze score`: figures of existing answers, from this package or another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze import cli
from regaze.cli import groups, options


def score(
    benchmark: Annotated[
        str,
        typer.Argument(
            callback=options.spelt_benchmarks,
            autocompletion=options.complete_benchmarks,
            help="The benchmark whose scorers are used.",
        ),
    ],
    answers: Annotated[
        Path,
        typer.Argument(
            help="answers.jsonl of a run, a file of lmms-eval, VLMEvalKit or a method repository, or JSON "
            "lines of your own: question, image, answer; of yes/no questions also label."
        ),
    ],
    *,
    against: Annotated[
        Path | None, typer.Option(help="Answers of the plain model to the same questions, to compare with.")
    ] = None,
    answer_key: Annotated[
        str | None,
        typer.Option(help="The field with the model's answers, where several could be it.", metavar="FIELD"),
    ] = None,
    asked: groups.QuestionOptions,
    judge: options.Judge = None,
    seed: options.Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
    debug: options.Debug = False,
) -> None:
    """Score answers from a file; nothing is generated.

    A file of yes/no answers that also has the right ones (a run of this package, lmms-eval, VLMEvalKit) is
    enough by itself. For other files say where the questions are, by --data, --images or --questions.

    Answers are joined to the questions by ids where both sides have them, else by text and image, else by
    position; the output says which. Each question needs an answer: where only some were asked, --split,
    --limit or --bench choose the same.
    """
    source = cli.questions.QuestionSource(**vars(asked))
    scored = cli.scoring.score_answers(benchmark, answers, against, answer_key, source, judge, seed)
    cli.tables.show_page(scored, cli.tables.scored, json)
