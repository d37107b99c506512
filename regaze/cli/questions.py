"""From options to benchmarks with their questions, and the judge that grades the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from regaze.arguments import parse_untyped, split_assignments
from regaze.cli import models
from regaze.cli.generation import generation_options
from regaze.cli.groups import QuestionOptions, RunOptions
from regaze.errors import InputError, ModelNotFoundError
from regaze.eval import EvalTask, Pope, catalogue
from regaze.eval.benchmarks.common.earlier import read_few_shot, with_few_shot
from regaze.eval.judges import HttpJudge, ModelJudge, RecordedJudge
from regaze.eval.judges.urls import without_secrets
from regaze.toolkit.load import model_source


@dataclass(frozen=True)
class QuestionSource(QuestionOptions):
    """Which questions of a benchmark, and what stands after each of them."""

    suffix: str | None = None
    allow_urls: bool = False

    @property
    def is_given(self) -> bool:
        """Whether any of the options has a value."""
        return any(asdict(self).values())


def make_tasks(benchmarks: str, given: RunOptions) -> list[EvalTask]:
    """One task per benchmark of a list of names, separated by commas."""
    names = [field.name for field in fields(QuestionSource)]
    source = QuestionSource(**{name: getattr(given, name) for name in names})
    generation = generation_options(given.generate, given.max_new_tokens)
    places = models.places(models.model_arguments(given.model_arg))
    graded_by = make_judge(given.judge, given.device)
    examples = read_few_shot(given.few_shot, given.allow_urls) if given.few_shot else ()
    tasks = []
    for name in benchmarks.split(","):
        benchmark = make_benchmark(name.strip(), source, graded_by, given.model, places)
        tasks.append(EvalTask(with_few_shot(benchmark, examples) if examples else benchmark, generation))
    return tasks


def make_benchmark(
    name: str,
    source: QuestionSource,
    judge: Any = None,
    model: str | None = None,
    places: Mapping[str, Any] | None = None,
) -> Any:
    """A benchmark with its questions.

    Args:
        model: decides between the shipped scenes; its tokenizer is needed for prompts of a certain length.
        places: where its files are, see `models.places`.

    Raises:
        InputError: an unknown name, no questions, no judge where one is needed, options that exclude each
            other. UnknownParameterError, BadParameterError: --bench.
    """
    own = split_assignments(source.bench or [], "--bench")
    given: dict[str, Any] = {}
    if source.suffix is not None:
        given["suffix"] = source.suffix.replace("\\n", "\n")
    if source.limit is not None:
        given["limit"] = source.limit
    if source.split not in (None, "all"):
        given["splits"] = [source.split]
    if twice := own.keys() & given.keys():
        raise InputError(f"--bench {min(twice)}: another option says it, too; give one of the two")
    own |= {option: json.dumps(value) for option, value in given.items()}
    if source.questions is not None or (name == "pope" and source.images and not source.data):
        return _pope_from_file(name, source, own)
    return catalogue.make_benchmark(
        name,
        data=source.data,
        images=source.images,
        settings=own,
        judge=judge,
        load_tokenizer=(lambda: _tokenizer(model, places or {})) if model else None,
        model=model,
    )


def _tokenizer(model: str, places: Mapping[str, Any]) -> Any:
    """The tokenizer alone: benchmarks are made before the model is loaded, so that errors come early."""
    try:
        return AutoTokenizer.from_pretrained(model_source(model), **places)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"cannot load the tokenizer of {model!r}: {error}") from error


def _pope_from_file(name: str, source: QuestionSource, own: dict[str, str]) -> Pope:
    """POPE with the questions of --questions."""
    if name != "pope":
        raise InputError(f"--questions is for pope; give {name} its official files by --data FOLDER")
    if source.questions is None or source.images is None:
        raise InputError("--questions FILE and --images DIR belong together; give both or neither")
    if source.split is not None:
        raise InputError("--split chooses among the shipped questions; leave it out with --questions")
    options = {key: parse_untyped(text) for key, text in own.items()}
    unknown = set(options) - {"suffix", "limit"}
    if unknown:
        raise InputError(f"--bench {unknown.pop()}: questions from a file have suffix and limit alone")
    files = {source.questions.stem: source.questions}
    return Pope.from_files(files, source.images, allow_urls=source.allow_urls, **options)


def make_judge(text: str | None, device: str | None = None) -> Any:
    """A judge from URL#MODEL, the name of a model, or a file of recorded verdicts; None for None.

    Args:
        device: where a model runs; see `ModelJudge.load`.
    """
    if text is None:
        return None
    if text.startswith(("http://", "https://")):
        url, _, model = text.partition("#")
        if not model:
            shown = without_secrets(url) or "URL"
            raise InputError(f"--judge {shown}: add the model's name on that server, as {shown}#NAME")
        return HttpJudge(url, model)
    return RecordedJudge(Path(text)) if text.endswith(".jsonl") else ModelJudge.load(text, device)
