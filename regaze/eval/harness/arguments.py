"""What `--model_args` says about a method: `method=NAME` and its parameters, each by its own name."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

from pydantic import TypeAdapter, ValidationError

from regaze.errors import BadParameterError
from regaze.interventions.base import Method
from regaze.interventions.registry import method_class

_OPENING, _CLOSING = "[({", "])}"


def parse(text: str) -> dict[str, Any]:
    """Arguments "name=value,..." as a dictionary; commas inside brackets and quotes do not separate.

    A value is JSON (number, true, null, list), else the text as it stands. Python's spellings of true, false
    and none are taken, too.

    Raises:
        BadParameterError: a part that is not name=value.
    """
    values = {}
    for part in _split(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise BadParameterError(f"--model_args: expected name=value, got {part!r} in {text!r}")
        values[name.strip()] = _literal(value.strip())
    return values


def take_method(arguments: dict[str, Any]) -> Method | None:
    """Remove `method` and its parameters from the arguments: the method, None for "none".

    Values may be texts, as a harness that splits arguments itself hands them over.

    Raises:
        UnknownMethodError: no such method.
        BadParameterError: a value that is not of the parameter's type.
    """
    name = arguments.pop("method", None)
    if name is None or str(name).lower() == "none":
        return None
    cls = method_class(str(name))
    hints = typing.get_type_hints(cls)
    own = [field.name for field in dataclasses.fields(cls) if field.init and field.name in arguments]
    method = cls.from_dict({name: _read(cls, name, hints[name], arguments.pop(name)) for name in own})
    if method.is_identity:
        raise BadParameterError(
            f"method={cls.name} changes nothing as it is set: {method!r}; give its parameters, or method=none"
        )
    return method


def explain_unknown(arguments: dict[str, Any], known: set[str], method: Method | None) -> None:
    """Refuse arguments that neither the harness's model nor the method takes.

    Raises:
        BadParameterError: names them and what there is.
    """
    unknown = sorted(set(arguments) - known)
    if not unknown:
        return
    there = ", ".join(["method", *sorted(known)])
    if method is not None:
        own = ", ".join(field.name for field in dataclasses.fields(method)) or "none"
        there += f"; parameters of {method.name}: {own}"
    raise BadParameterError(f"--model_args: unknown {', '.join(unknown)}; there are {there}")


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(cls: type[Method], name: str, hint: Any, value: Any) -> Any:
    """The value in the parameter's type: harnesses make 3 of 3, but -1.0 of -1 and a text of [3,1]."""
    adapter = TypeAdapter(hint)
    try:
        return adapter.validate_python(_literal(value) if isinstance(value, str) else value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise BadParameterError(f"method={cls.name}, {name}={value!r}: {reason}") from error
