"""The ledger: an entry per reproduction, with its figures, verdicts, versions and hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from regaze.errors import InputError
from regaze.eval.reproduction import verdict
from regaze.eval.reproduction.recipe import MEAN, Published, Recipe
from regaze.eval.reproduction.verdict import Estimate, Range, Verdict
from regaze.eval.run.results import ANSWERS, dumps
from regaze.reading import hash_file, read_text
from regaze.writing import make_folder, replace_file

FORMAT: Literal[1] = 1
#: An entry's file in the folder of its run.
ENTRY = "ledger.json"
Condition = Literal["plain", "method", "gain"]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Figure(_Checked):
    """A published figure and the one measured here, both as the source prints it.

    Attributes:
        published: by the recipe's source. low, high: of the published range.
        interval: 95 %, wider where the images are others; None where the figure does not vary.
    """

    split: str
    figure: str
    condition: Condition
    published: float
    low: float
    high: float
    value: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    reason: str = ""


class VersionRun(_Checked):
    """A run of one version of the questions.

    Attributes:
        version: None where the benchmark has a single one.
        benchmark: as results.json describes it, hashes of the files included, without lists of images.
        seconds: of generation, by condition. answers_sha256: of answers.jsonl.
    """

    version: str | None
    benchmark: dict[str, Any]
    generation: dict[str, Any]
    seconds: dict[str, float]
    answers_sha256: str
    figures: list[Figure]
    verdict: Verdict
    reason: str = ""


class Entry(_Checked):
    """A reproduction.

    Attributes:
        recipe_sha256: of the recipe's file.
        method: name and parameters as they ran; None for the plain model alone.
        limits: why the run was not the whole recipe. deviations: what is unknown, or another way here.
    """

    format: Literal[1]
    recipe: str
    recipe_sha256: str
    created: str
    verdict: Verdict
    reason: str
    runs: list[VersionRun]
    model: dict[str, Any]
    method: dict[str, Any] | None
    scorer: str
    seed: int
    versions: dict[str, str]
    machine: dict[str, Any]
    limits: list[str]
    deviations: list[str]


def deviations(recipe: Recipe) -> list[str]:
    """What may make a run of this recipe another one than the published."""
    unknown = (f"{field} is not stated, here: {taken}" for field, taken in recipe.unknown.items())
    return [*unknown, *recipe.differs]


def entry(
    recipe: Recipe,
    recipe_sha256: str,
    runs: Mapping[str | None, tuple[Mapping[str, Any], Path]],
    limits: Sequence[str] = (),
    deviating: Sequence[str] = (),
) -> Entry:
    """The entry of complete runs.

    Args:
        runs: {version of the questions: (results.json, folder)}.
        limits: why they are not the whole recipe. deviating: what was another way besides the recipe's own.
    """
    known = [*deviations(recipe), *deviating]
    made = [
        _version_run(recipe, version, results, folder, limits, known)
        for version, (results, folder) in runs.items()
    ]
    combined = verdict.together([run.verdict for run in made])
    results = next(iter(runs.values()))[0]
    (method,) = results["methods"].values() if recipe.method else (None,)
    return Entry(
        format=FORMAT,
        recipe=recipe.recipe,
        recipe_sha256=recipe_sha256,
        created=results["created"],
        verdict=combined.verdict,
        reason=combined.reason or made[0].reason,
        runs=made,
        model=results["model"],
        method=method,
        scorer=recipe.scorer,
        seed=results["seed"],
        versions=results["versions"],
        machine=results["machine"],
        limits=list(limits),
        deviations=known,
    )


def _version_run(
    recipe: Recipe,
    version: str | None,
    results: Mapping[str, Any],
    folder: Path,
    limits: Sequence[str],
    deviating: Sequence[str],
) -> VersionRun:
    (benchmark,) = results["benchmarks"].values()
    described = {name: value for name, value in benchmark["benchmark"].items() if name != "images"}
    figures = compare(recipe, benchmark)
    failed = [f"{each['left_out']} questions failed" for each in _conditions(benchmark) if each["left_out"]]
    other = [] if limits else _other_questions(recipe, described)
    found = verdict.overall([each.verdict for each in figures], [*limits, *failed, *other], deviating)
    return VersionRun(
        version=version,
        benchmark=described,
        generation=benchmark["generation"],
        seconds={
            name: round(each["cost"]["seconds"], 1)
            for name, each in zip(("plain", "method"), _conditions(benchmark), strict=False)
        },
        answers_sha256=hash_file(folder / ANSWERS),
        figures=figures,
        verdict=found.verdict,
        reason=found.reason,
    )


def _conditions(benchmark: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [benchmark["plain"], *benchmark["methods"].values()]


def _other_questions(recipe: Recipe, described: Mapping[str, Any]) -> list[str]:
    """Whether the questions are known to be others than the recipe's."""
    wanted = recipe.benchmark.questions_sha256
    if wanted is not None and described["questions_sha256"] != wanted:
        return ["the questions are not those of the recipe"]
    for file in described.get("files", {}).values():
        known = [digest for path, digest in recipe.benchmark.files.items() if Path(path).name == file["file"]]
        if known and None not in known and file["sha256"] not in known:
            return [f"{file['file']} is not the published file"]
    return []


def compare(recipe: Recipe, benchmark: Mapping[str, Any]) -> list[Figure]:
    """The published figures beside those of a benchmark's results.

    Raises:
        InputError: the results have not the scorer, a split or a figure of the recipe.
    """
    pairs = [
        (published, condition)
        for published in recipe.published
        for condition in _published_conditions(published)
    ]
    factor = 1.0
    if recipe.interval.questions == "new":
        here = max(split["images"] for split in benchmark["plain"]["figures"].values())
        factor = verdict.sampling_factor(here, recipe.benchmark.images or here)
    return [_figure(recipe, benchmark, *pair, factor=factor, figures=len(pairs)) for pair in pairs]


def _published_conditions(published: Published) -> Iterator[Condition]:
    if published.plain is not None:
        yield "plain"
    if published.method is not None:
        yield "method"
        if published.plain is not None:
            yield "gain"


def _figure(
    recipe: Recipe,
    benchmark: Mapping[str, Any],
    published: Published,
    condition: Condition,
    *,
    factor: float,
    figures: int,
) -> Figure:
    splits = recipe.benchmark.splits if published.split == MEAN else (published.split,)
    each = [_measured(recipe, benchmark, split, published.figure, condition) for split in splits]
    ours = verdict.widened(verdict.mean(each), factor)
    value, theirs, own = published_values(published, condition)
    found = verdict.judge(
        ours,
        theirs,
        own=own if recipe.interval.questions == "same" else None,
        figures=figures,
        is_gain=condition == "gain",
    )
    return Figure(
        split=published.split,
        figure=published.figure,
        condition=condition,
        published=round(value, 4),
        low=round(theirs.low, 4),
        high=round(theirs.high, 4),
        value=None if ours.value is None else round(ours.value, 4),
        interval=ours.interval and (round(ours.interval.low, 4), round(ours.interval.high, 4)),
        verdict=found.verdict,
        reason=found.reason,
    )


def published_values(published: Published, condition: Condition) -> tuple[float, Range, Range]:
    """The source's value of a figure under a condition, the published range, and the source's own."""
    others = getattr(published.elsewhere, condition) if published.elsewhere else ()
    if condition == "gain":
        assert published.plain is not None
        assert published.method is not None
        pair = published.plain, published.method
        value = pair[1] - pair[0]
        own, theirs = (verdict.published_gain(*pair, each, published.plus_minus) for each in ((), others))
    else:
        value = getattr(published, condition)
        own, theirs = (verdict.published_range(value, each, published.plus_minus) for each in ((), others))
    return value, theirs, own


def _measured(
    recipe: Recipe, benchmark: Mapping[str, Any], split: str, figure: str, condition: Condition
) -> Estimate:
    """A figure of the results as sources print it: shares in percent."""
    entry = benchmark["plain"] if condition == "plain" else next(iter(benchmark["methods"].values()))
    if entry.get("error"):
        raise InputError(f"{recipe.recipe}: the method could not run: {entry['error']}")
    key = {"plain": "plain", "method": "edited", "gain": "difference"}[condition]
    try:
        found = entry["figures"][split][recipe.scorer][key][figure]
    except KeyError as error:
        raise InputError(
            f"{recipe.recipe}: the results have no {figure} of {split} by {recipe.scorer}: {error} is missing"
        ) from error
    scale = 1.0 if figure in benchmark["numbers"].get(recipe.scorer, ()) else 100.0
    numbers = (found[name] for name in ("value", "low", "high"))
    return Estimate(*(None if number is None else scale * number for number in numbers))


def write(made: Entry, folder: Path, name: str = ENTRY) -> Path:
    """Write an entry into a folder; returns its file. Raises InputError where that cannot be written."""
    path = make_folder(folder) / name
    replace_file(path, dumps(made.model_dump()) + "\n")
    return path


def file_name(made: Entry) -> str:
    """The name of an entry's file in a ledger: recipe, and what tells runs of it apart."""
    return f"{made.recipe}-{made.created[:10]}-{made.runs[0].answers_sha256[:8]}.json"


def read(path: Path) -> Entry:
    """An entry from its file. Raises InputError where it is none."""
    text = read_text(path, "ledger entry ")
    try:
        return Entry.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is no ledger entry of format {FORMAT}: {where}: {first['msg']}") from error


def read_all(folder: Path) -> list[Entry]:
    """The entries in a folder, by recipe and then by date."""
    entries = [read(path) for path in sorted(folder.glob("*.json"))]
    return sorted(entries, key=lambda each: (each.recipe, each.created))
