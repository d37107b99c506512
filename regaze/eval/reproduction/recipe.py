"""Recipes: everything that a published figure depends on, as far as its source says it.

A recipe is a YAML file of the form of `Recipe`; those of the package lie in `recipes/`. Values are as the
source prints them: shares in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    ValidationError,
    model_validator,
)

from regaze.errors import InputError
from regaze.names import either, find_name, near_names
from regaze.reading import hash_file, parse_yaml, read_text

FOLDER = Path(__file__).parent / "recipes"
#: Name of a figure's split that is the mean over the recipe's splits.
MEAN = "mean"
#: Where a prompt format has the image and the question.
IMAGE, QUESTION = "<image>", "{question}"

Text = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Trust = Literal["A", "B", "C", "D"]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Model(_Checked):
    """The model.

    Attributes:
        id: for `regaze.load`. revision: None where no source names one.
        image: "pad" pictures to squares with the mean colour, "crop" the middle, or "own": whatever the
            model's processor does.
    """

    id: Text
    revision: Text | None = None
    dtype: Literal["float32", "float16", "bfloat16"]
    image: Literal["pad", "crop", "own"] = "own"


class Example(_Checked):
    """One prompt of the published run, to the byte: what the model is given for `question`."""

    question: Text
    text: Text


class Prompt(_Checked):
    """The prompt.

    Attributes:
        system: a sentence before everything else; one space follows it.
        format: the text around a question, with `<image>` and `{question}` once each; None for what the
            model's own processor makes.
        suffix: what follows each question. instruction: what is asked where the benchmark has no questions.
    """

    system: Text | None = None
    format: Text | None = None
    suffix: str | None = None
    instruction: Text | None = None
    example: Example | None = None

    @model_validator(mode="after")
    def _has_places(self) -> Prompt:
        if self.format is not None and (self.format.count(IMAGE), self.format.count(QUESTION)) != (1, 1):
            raise ValueError(f"prompt.format needs {IMAGE} and {QUESTION} once each")
        if self.format is not None and self.example is None:
            raise ValueError("prompt.format needs prompt.example, one whole prompt to check it by")
        if self.format is not None and self.format.index(IMAGE) > self.format.index(QUESTION):
            raise ValueError(f"prompt.format: {IMAGE} comes before {QUESTION}")
        if self.system is not None and self.format is None:
            raise ValueError("prompt.system needs prompt.format")
        return self


class Decoding(_Checked):
    """Arguments of `generate`, and the seed of sampled answers."""

    max_new_tokens: Annotated[int, Field(ge=1)]
    do_sample: bool = False
    temperature: Annotated[FiniteFloat, Field(gt=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    num_beams: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _is_consistent(self) -> Decoding:
        sampling = [name for name in ("temperature", "top_p", "top_k") if getattr(self, name) is not None]
        if sampling and not self.do_sample:
            raise ValueError(f"decoding.{sampling[0]} needs do_sample: true")
        if self.do_sample and self.num_beams > 1:
            raise ValueError("decoding: beams are not sampled")
        return self

    def arguments(self) -> dict[str, Any]:
        """Of `generate`, without those that are its defaults."""
        given = self.model_dump(exclude={"seed"}, exclude_none=True)
        return {
            name: value for name, value in given.items() if value != type(self).model_fields[name].default
        }


class Method(_Checked):
    """A method or control by its registered name. `source` says where the parameters are from."""

    name: Text
    parameters: dict[str, Any] = {}
    source: Text


class Benchmark(_Checked):
    """The questions.

    Attributes:
        data: "files" for the published ones, "demo" for those about the shipped scenes.
        options: of the benchmark's constructor, besides those that other fields of the recipe decide.
        versions: of the published files; several where the source does not say which.
        files: {path in the benchmark's folder: sha256, None where it is not known}.
        questions_sha256: of the questions, as results.json has it.
        images: of how many images the published figures are.
    """

    name: Text
    data: Literal["files", "demo"] = "files"
    options: dict[str, Any] = {}
    versions: tuple[Text, ...] = ()
    splits: Annotated[tuple[Text, ...], Field(min_length=1)]
    files: dict[str, Sha256 | None] = {}
    questions_sha256: Sha256 | None = None
    images: Annotated[int, Field(ge=1)] | None = None


class Spread(_Checked):
    """What other sources have for the same model and task, by condition; "gain" is method minus plain."""

    plain: tuple[FiniteFloat, ...] = ()
    method: tuple[FiniteFloat, ...] = ()
    gain: tuple[FiniteFloat, ...] = ()
    where: Text


class Published(_Checked):
    """A published figure of the plain model, of the method, or of both.

    Attributes:
        plus_minus: what the source leaves open: its rounding, its deviation over seeds, or how well a value
            can be read off a plot.
    """

    split: Text
    figure: Text
    plain: FiniteFloat | None = None
    method: FiniteFloat | None = None
    plus_minus: NonNegativeFloat = 0.05
    elsewhere: Spread | None = None


class Source(_Checked):
    """Where the figures are published.

    Attributes:
        trust: A, rescored from released answers, or two independent sources agree; B, one source with script
            and parameters; C, the protocol is known in part; D, contradicted.
    """

    where: Text
    trust: Trust
    note: str = ""


class Interval(_Checked):
    """Which questions the published figures are of: "same" ones, or "new", other images of the same kind."""

    questions: Literal["same", "new"]


class Cost(_Checked):
    """What a run costs; None where nobody measured it."""

    forwards_per_token: NonNegativeFloat | None = None
    questions: int | None = None
    wall_time: Text | None = None


class Recipe(_Checked):
    """A published figure and how to get it again.

    Attributes:
        recipe: its name, which is that of its file.
        unknown: {field: what is taken here}, for fields that the source does not state.
        differs: what is known to be another way here.
    """

    recipe: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.-]*$")]
    about: Text
    model: Model
    prompt: Prompt
    decoding: Decoding
    method: Method | None = None
    benchmark: Benchmark
    scorer: Text
    published: Annotated[tuple[Published, ...], Field(min_length=1)]
    source: Source
    interval: Interval
    cost: Cost = Cost()
    unknown: dict[str, Text] = {}
    differs: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Recipe:
        splits = {*self.benchmark.splits, MEAN, "all"}
        for each in self.published:
            if each.split not in splits:
                raise ValueError(
                    f"published: no split {each.split!r} among {', '.join(self.benchmark.splits)}"
                )
            if each.plain is None and each.method is None:
                raise ValueError(f"published: {each.split} {each.figure} has no value")
            if each.method is not None and self.method is None:
                raise ValueError("published: a figure of a method, and the recipe has none")
        for name in self.unknown:
            if name.split(".")[0] not in type(self).model_fields:
                raise ValueError(f"unknown: the recipe has no field {name!r}")
        return self


def names() -> list[str]:
    """The recipes of the package, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(name: str) -> Path:
    """The file of a recipe: of the package by its name, else a file that ends in .yaml.

    Raises:
        InputError: there is no such recipe.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if (found := find_name(name, names())) is None:
        near = list(map(repr, near_names(name, names())))
        asked = f"did you mean {either(near)}? " if near else ""
        raise InputError(
            f"unknown recipe {name!r}; {asked}`regaze reproduce --list` names all, a file ends in .yaml"
        )
    return FOLDER / f"{found}.yaml"


def load(name: str) -> Recipe:
    """A recipe by its name, or from a file.

    Raises:
        InputError: there is none, it cannot be read, or it is not of the form of `Recipe`.
    """
    return parse(read_text(path_of(name), "recipe "), path_of(name))


def parse(text: str, path: Path) -> Recipe:
    """A recipe from the text of its file. Raises InputError as `load`."""
    content = parse_yaml(text, path)
    try:
        recipe = Recipe.model_validate(content, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is no recipe: {where}: {first['msg']}") from error
    if recipe.recipe != path.stem:
        raise InputError(f"{path}: recipe: {recipe.recipe!r} is not the name of the file")
    return recipe


def sha256_of(name: str) -> str:
    """Hash of a recipe's file, by which an entry of the ledger says which recipe it ran."""
    return hash_file(path_of(name), "recipe ")


def load_all(chosen: Sequence[str] | None = None) -> list[Recipe]:
    """The recipes of these names, all by default."""
    return [load(name) for name in (names() if chosen is None else chosen)]
