"""Reading files of head scores: JSON of either format, checked by type and size before anything is built."""

from __future__ import annotations

from os import fspath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from regaze.errors import InputError
from regaze.reading import StrPath, parse_json, read_text

FORMAT: Literal["regaze retrieval heads"] = "regaze retrieval heads"
VERSION: Literal[1] = 1
#: Most scores of a file: trials x layers x heads.
MAX_SCORES = 1 << 26

_NAME = r"^(0|[1-9][0-9]{0,3})-(0|[1-9][0-9]{0,3})$"
_Name = Annotated[str, Field(pattern=_NAME)]
_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Size = Annotated[int, Field(ge=1, le=10_000)]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Score = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class TrialEntry(BaseModel):
    """A `Trial`."""

    model_config = ConfigDict(strict=True)

    needle: _Count
    length: _Count
    depth: Annotated[float, Field(ge=0.0, le=100.0)]
    span: tuple[_Count, _Count]
    recall: _Share
    response: str
    kinds: Annotated[int, Field(ge=1, lt=2**31)]
    copied: dict[_Name, tuple[_Count, _Count]]


class HeadFile(BaseModel):
    """What `RetrievalHeads.save` writes; other entries say how the trials were run."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: Literal["regaze retrieval heads"]
    version: Literal[1]
    layers: _Size
    heads: _Size
    trials: Annotated[list[TrialEntry], Field(min_length=1)]


_RELEASED = TypeAdapter(dict[_Name, list[_Score]], config=ConfigDict(strict=True))


def read(path: StrPath) -> dict[str, Any]:
    """The content of a head file of either format; one in our own has an entry "format".

    Raises:
        InputError: the file cannot be read, is no head file, or holds more scores than `MAX_SCORES`.
    """
    path = fspath(path)
    name, text = repr(path), read_text(path, "head file ")
    content = parse_json(text, path)
    own = isinstance(content, dict) and "format" in content
    if own and (content["format"], content.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{name}: this version reads {FORMAT!r} {VERSION}")
    try:
        if own:
            _check(HeadFile.model_validate_json(text))
        else:
            _check_released(_RELEASED.validate_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise _no_head_file(name, f"{place}: {first['msg']}") from None
    except ValueError as error:
        raise _no_head_file(name, str(error)) from None
    return dict(content)


def _check(file: HeadFile) -> None:
    """Raise ValueError where trials do not fit the numbers of layers and heads."""
    if len(file.trials) * file.layers * file.heads > MAX_SCORES:
        raise ValueError(
            f"{len(file.trials)} trials of {file.layers} x {file.heads} heads are over {MAX_SCORES} scores"
        )
    for number, trial in enumerate(file.trials):
        if trial.span[0] >= trial.span[1]:
            raise ValueError(f"trials.{number}.span: {list(trial.span)} is empty")
        for name in trial.copied:
            layer, head = map(int, name.split("-"))
            if layer >= file.layers or head >= file.heads:
                raise ValueError(
                    f"trials.{number}.copied: there is no head {name} in {file.layers} x {file.heads} heads"
                )


def _check_released(scores: dict[str, list[float]]) -> None:
    """Raise ValueError where heads are missing, InputError where there are no trials."""
    if not scores or not all(scores.values()):
        raise InputError("the head file is empty: in the run that wrote it no trial succeeded")
    heads = [tuple(map(int, name.split("-"))) for name in scores]
    layers, width = (1 + max(head[i] for head in heads) for i in (0, 1))
    if len(heads) != layers * width or len({len(values) for values in scores.values()}) != 1:
        raise ValueError("heads are missing, or have lists of different lengths")


def _no_head_file(name: str, why: str) -> InputError:
    return InputError(
        f'{name} is no head file: expected {{"layer-head": [score, ...]}} or what RetrievalHeads.save writes '
        f"({_one_line(why)})"
    )


def _one_line(error: object) -> str:
    """What an error says, without control characters and endless values of the file."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-90:]}"
