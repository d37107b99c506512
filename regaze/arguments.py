"""NAME=VALUE arguments: texts parsed by the type annotation of the parameter they set.

The command line, the options of benchmarks and the arguments of evaluation harnesses share this parser.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from regaze.errors import BadParameterError, UnknownParameterError
from regaze.names import either, find_name, suggestion

#: spellings that JSON does not have
_CONSTANTS = {"none": "null", "true": "true", "false": "false"}
#: Signs of the constraints that bound a number, by their attribute.
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
#: More numbers than these no range has: there are no models of as many layers.
_LONGEST_RANGE = 10_000


def split_assignments(texts: Iterable[str], option: str) -> dict[str, str]:
    """{name: value} of texts "NAME=VALUE"; of a name that comes twice the last value.

    Args:
        option: the option that the texts were given to, for the error ("--set").

    Raises:
        BadParameterError: a text without a name or without "=".
    """
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise BadParameterError(f"{option} {text}: expected NAME=VALUE")
        values[name.strip()] = value
    return values


def parse_untyped(text: str) -> Any:
    """A JSON value (Python's None, True and False included), else the text itself."""
    try:
        return json.loads(_CONSTANTS.get(text.lower(), text))
    except (ValueError, RecursionError):
        return text


def parse_typed(values: Mapping[str, Any], types: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Values of the annotated types.

    A text is JSON ("none" is null), a bare word, or words with commas between, whichever the type accepts
    first. Other values are converted as pydantic does it: 3.0 is accepted for an int.

    Args:
        values: texts, or values that a harness has parsed already. Names may have other capitals.
        types: annotation per parameter, see `parameter_types`.
        prefix: what error messages begin with, such as "--set ".

    Raises:
        UnknownParameterError: a name that is not in `types`.
        BadParameterError: a value that is not of the parameter's type.
    """
    parsed: dict[str, Any] = {}
    for text, value in values.items():
        name = find_name(text, types)
        if name is None:
            raise UnknownParameterError(
                f"{prefix}{text}={value}: no parameter {text!r}{suggestion(text, types)}"
            )
        if name in parsed:
            raise BadParameterError(f"{prefix}{text}={value}: {name} was given before")
        try:
            adapter = TypeAdapter(types[name])
            parsed[name] = (
                _parse_text(adapter, value) if isinstance(value, str) else adapter.validate_python(value)
            )
        except ValidationError as error:
            expected, reason = in_words(types[name]), error.errors()[0]["msg"]
            raise BadParameterError(f"{prefix}{name}={value}: expected {expected} ({reason})") from error
        except PydanticUserError as error:
            raise BadParameterError(f"{prefix}{name}={value}: can be given in Python only") from error
    return parsed


def parse_indices(text: str) -> list[int]:
    """Numbers and ranges with both ends included, such as "0,2-4", in the order that they are given in.

    A negative number counts from the end, which is for the caller to resolve.

    Raises:
        ValueError: anything else, or a range of none or of more than 10,000 numbers.
    """
    indices: list[int] = []
    for part in map(str.strip, text.split(",")):
        found = re.fullmatch(r"(-?[0-9]{1,9})|([0-9]{1,9})\s*-\s*([0-9]{1,9})", part)
        if found is None:
            raise ValueError(f"{part!r} is neither a number nor a range such as 2-4")
        first, last = int(found[2] or found[1]), int(found[3] or found[1])
        if not first <= last < first + _LONGEST_RANGE:
            raise ValueError(f"{part} is no range")
        indices += range(first, last + 1)
    return indices


def parameter_types(cls: type) -> dict[str, Any]:
    """Annotations of the parameters of a dataclass, constraints included."""
    types = typing.get_type_hints(cls, include_extras=True)
    return {field.name: types[field.name] for field in dataclasses.fields(cls) if field.init}


def _parse_text(adapter: TypeAdapter[Any], text: str) -> Any:
    """Raises the ValidationError of the reading that came closest."""
    failure: ValidationError | None = None
    for candidate in _as_json(text):
        try:
            return adapter.validate_json(candidate, strict=True)
        except ValidationError as error:
            if failure is None or failure.errors()[0]["type"] == "json_invalid":
                failure = error
    assert failure is not None
    raise failure


def _as_json(text: str) -> Iterator[str]:
    yield _CONSTANTS.get(text.lower(), text)
    yield json.dumps(text)
    words = [word.strip() for word in text.split(",")]
    yield json.dumps([parse_untyped(word) for word in words])
    yield json.dumps(words)


def in_words(annotation: Any) -> str:
    """What an annotation allows, such as "float in [0, 1]", "int >= 1 or None" or "'zero' or 'uniform'"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _constrained(*arguments)
    if origin is Literal:
        return either([repr(argument) for argument in arguments])
    if origin in (Union, UnionType):
        return either([in_words(argument) for argument in arguments])
    if origin is tuple:
        return f"tuple[{', '.join('...' if a is Ellipsis else in_words(a) for a in arguments)}]"
    if origin is Sequence:  # kept as a tuple
        return f"tuple[{in_words(arguments[0])}, ...]"
    if annotation is NoneType:
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _constrained(base: Any, *metadata: Any) -> str:
    """A type with constraints, in words."""
    described = [each.description for each in metadata if isinstance(each, FieldInfo) and each.description]
    if described:
        return described[-1]
    bounds = {}
    for each in metadata:
        for constraint in each.metadata if isinstance(each, FieldInfo) else [each]:
            for attribute, sign in _SIGNS.items():
                if (bound := getattr(constraint, attribute, None)) is not None:
                    bounds[sign] = f"{bound:g}"
    text = in_words(base)
    if len(bounds) < 2:
        return text + "".join(f" {sign} {bound}" for sign, bound in bounds.items())
    left = f"({bounds['>']}" if ">" in bounds else f"[{bounds['>=']}"
    right = f"{bounds['<']})" if "<" in bounds else f"{bounds['<=']}]"
    return f"{text} in {left}, {right}"
