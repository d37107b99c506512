"""Check a recipe without the weights: parameters, questions, scorer, prompt.

What is checked needs no network. A file that is not here is named with how to get it; a prompt whose
processor is not here is named as not checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from regaze.arguments import parse_typed
from regaze.errors import InputError, ModelNotFoundError, RegazeError
from regaze.eval import catalogue
from regaze.eval import files as benchmark_files
from regaze.eval.reproduction import ledger, prompts, questions
from regaze.eval.reproduction.recipe import MEAN, Recipe
from regaze.interventions import registry
from regaze.toolkit.load import load_without_weights
from regaze.toolkit.wrap import Gaze, wrap

State = Literal["ok", "missing", "unknown", "wrong"]


class Check(NamedTuple):
    """One check.

    Attributes:
        state: "missing" can be got, "unknown" is stated by nobody or was not checked, "wrong" is a mistake in
            the recipe or a file that is not the published one.
    """

    part: str
    state: State
    found: str


def dry_run(
    recipe: Recipe,
    data: Path | None = None,
    images: Path | None = None,
    processor_of: Callable[[Recipe], Gaze | None] | None = None,
) -> list[Check]:
    """All checks of a recipe.

    Args:
        data: folder of the published files. images: folder of the images.
        processor_of: a wrapped model, which needs no weights; None for what is on this machine.
    """
    checks = [*_model(recipe), *_decoding(recipe), *_method(recipe), *_options(recipe)]
    if not any(check.state == "wrong" for check in checks):
        checks += [*_figures(recipe), *_files(recipe, data), *_questions(recipe, data, images)]
    checks += _prompt(recipe, (processor_of or processor_at_hand)(recipe))
    return checks + [Check("source", "unknown", each) for each in ledger.deviations(recipe)]


def _model(recipe: Recipe) -> Iterator[Check]:
    model = recipe.model
    if model.id == "demo":
        yield Check("model", "ok", "the bundled model")
    elif model.revision is None:
        yield Check("model", "unknown", f"{model.id}: no revision is named; an entry has its weights' hash")
    else:
        yield Check("model", "ok", f"{model.id} at {model.revision}")


def _decoding(recipe: Recipe) -> Iterator[Check]:
    given = recipe.decoding.arguments()  # which the form of recipes checks
    yield Check("decoding", "ok", ", ".join(f"{name}={value}" for name, value in given.items()))


def _method(recipe: Recipe) -> Iterator[Check]:
    if recipe.method is None:
        yield Check("method", "ok", "none: the plain model")
        return
    try:
        method = registry.method_from_dict({**recipe.method.parameters, "method": recipe.method.name})
    except RegazeError as error:
        yield Check("method", "wrong", str(error))
        return
    given = ", ".join(f"{name}={value}" for name, value in recipe.method.parameters.items())
    yield Check("method", "ok", f"{method.name} {given or 'with its defaults'} ({recipe.method.source})")
    if method.lacks:
        yield Check("method", "missing", f"{method.name}: {method.lacks}")


def _options(recipe: Recipe) -> Iterator[Check]:
    try:
        types = questions.option_types(recipe)
        for version in recipe.benchmark.versions or (None,):
            chosen = questions.as_texts(questions.options(recipe, version))
            parse_typed(chosen, types, f"{recipe.benchmark.name}, option ")
    except RegazeError as error:
        yield Check("questions", "wrong", str(error))
        return
    cls = catalogue.benchmark_class(recipe.benchmark.name)
    there = [file.path for file in cls.about.files]
    for version in recipe.benchmark.versions:
        if not any(path.startswith(f"{version}/") for path in there):
            yield Check("questions", "wrong", f"no version {version!r} of {recipe.benchmark.name}")
    unknown = [split for split in recipe.benchmark.splits if split not in cls.splits]
    if not cls.splits:
        yield Check(
            "questions", "unknown", f"splits not checked: the files of {recipe.benchmark.name} decide"
        )
    elif unknown:
        yield Check("questions", "wrong", f"no split {unknown[0]!r}; there are {', '.join(cls.splits)}")


def _figures(recipe: Recipe) -> Iterator[Check]:
    try:
        known = catalogue.benchmark_class(recipe.benchmark.name).known_figures()
    except (RegazeError, TypeError):  # its scorers need a judge, or words from its files
        yield Check(
            "scorer", "unknown", f"not checked: {recipe.benchmark.name} has none without its questions"
        )
        return
    if recipe.scorer not in known:
        yield Check("scorer", "wrong", f"no scorer {recipe.scorer!r}; there are {', '.join(known)}")
        return
    figures = dict.fromkeys(each.figure for each in recipe.published)
    wrong = [figure for figure in figures if figure not in known[recipe.scorer]]
    if wrong:
        there = ", ".join(known[recipe.scorer])
        yield Check("scorer", "wrong", f"{recipe.scorer} has no figure {wrong[0]!r}; there are {there}")
    else:
        yield Check("scorer", "ok", f"{recipe.scorer}: {', '.join(figures)}")


def _files(recipe: Recipe, data: Path | None) -> Iterator[Check]:
    about = catalogue.benchmark_class(recipe.benchmark.name).about
    published = {file.path: file.sha256 for file in about.files}
    place = questions.folder(recipe, data)
    for path, digest in recipe.benchmark.files.items():
        if digest and published.get(path) not in (None, digest):
            yield Check("files", "wrong", f"{path}: the published file has sha256 {published[path]}")
        elif place is not None:
            get = f"`regaze benchmarks get {recipe.benchmark.name}`" if path in published else about.home
            yield _file(place, path, digest, get)


def _file(place: Path, path: str, digest: str | None, get: str) -> Check:
    try:
        found = benchmark_files.find_file(place, path, Path(path).name)
        own = benchmark_files.sha256(found)
    except InputError:
        return Check("files", "missing", f"{path} is not in {place}; get it from {get}")
    if digest is None:
        return Check("files", "unknown", f"{path}: no hash to compare with; it is {own}")
    if own != digest:
        return Check("files", "wrong", f"{found} has sha256 {own}, the recipe's is {digest}")
    return Check("files", "ok", f"{path} is the published one")


def _questions(recipe: Recipe, data: Path | None, images: Path | None) -> Iterator[Check]:
    """Make the questions where the files are at hand."""
    place = questions.folder(recipe, data)
    if place is not None and not os.path.isdir(place):
        yield Check("questions", "missing", f"not made: there is no folder {place}; give --data and --images")
        return
    for version in recipe.benchmark.versions or (None,):
        try:
            made = questions.make(recipe, version=version, data=data, images=images)
        except RegazeError as error:
            yield Check("questions", "missing", f"{version or recipe.benchmark.name}: {error}")
            continue
        yield _made(recipe, version, made)


def _made(recipe: Recipe, version: str | None, made: Any) -> Check:
    wanted, described = recipe.benchmark.questions_sha256, made.describe()
    if wanted is not None and described["questions_sha256"] != wanted:
        return Check("questions", "wrong", f"their hash is {described['questions_sha256']}, not {wanted}")
    there = {*made.groups(), MEAN}
    absent = [each.split for each in recipe.published if each.split not in there]
    if absent:
        return Check("questions", "wrong", f"no split {absent[0]!r}; there are {', '.join(made.groups())}")
    return Check("questions", "ok", f"{len(made.items)} questions {version or ''}".rstrip())


def _prompt(recipe: Recipe, gaze: Gaze | None) -> Iterator[Check]:
    prompt = recipe.prompt
    if prompt.example is None:
        yield Check("prompt", "unknown", "the recipe has no example")
        return
    if prompt.format is not None:
        made = prompts.compose(prompt, prompt.example.question)
        if made != prompt.example.text:
            yield Check(
                "prompt", "wrong", f"the format makes {made!r}, the example is {prompt.example.text!r}"
            )
            return
        yield Check("prompt", "ok", f"{len(made.encode())} bytes of the example")
    if gaze is None:
        left = "its tokens" if prompt.format is not None else "the example"
        yield Check("prompt", "unknown", f"{left} not checked: needs the processor of {recipe.model.id}")
        return
    yield _rendered(recipe, gaze)


def _rendered(recipe: Recipe, gaze: Gaze) -> Check:
    """The example's prompt as the model's processor makes it."""
    example = recipe.prompt.example
    assert example is not None
    try:
        prompts.prepare(gaze, recipe)
        made = gaze.reader.render(f"{example.question}{recipe.prompt.suffix or ''}", 1).text
    except RegazeError as error:
        return Check("prompt", "wrong", str(error))
    if made != example.text:
        return Check("prompt", "wrong", f"the processor makes {made!r}, the example is {example.text!r}")
    return Check("prompt", "ok", f"the processor of {recipe.model.id} makes the example")


def processor_at_hand(recipe: Recipe) -> Gaze | None:
    """The recipe's model without weights and from this machine alone; None where it is not here."""
    places: dict[str, Any] = {} if recipe.model.id == "demo" else {"local_files_only": True}
    if recipe.model.revision:
        places["revision"] = recipe.model.revision
    try:
        model, processor = load_without_weights(recipe.model.id, **places)
    except ModelNotFoundError:
        return None
    return None if processor is None else wrap(model, processor)
