"""The method in a harness's `--model_args`: `method=NAME` and its parameters by their names."""

from __future__ import annotations

import dataclasses
from typing import Any

from regaze.arguments import parameter_types, parse_typed, parse_untyped
from regaze.errors import BadParameterError
from regaze.interventions.base import Method
from regaze.interventions.registry import method_class
from regaze.names import near_names

_OPEN, _CLOSE = "[({", "])}"


def parse(text: str) -> dict[str, Any]:
    """Arguments "name=value,..." as a dictionary; commas inside brackets and quotes do not separate.

    Values are parsed as by `regaze.arguments.parse_untyped`.

    Raises:
        BadParameterError: a part that is not name=value.
    """
    values = {}
    for part in _split(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise BadParameterError(f"--model_args: expected name=value, got {part!r} in {text!r}")
        values[name.strip()] = parse_untyped(value.strip())
    return values


def pop_method(arguments: dict[str, Any]) -> Method | None:
    """Remove `method` and its parameters from the arguments: the method, None for "none".

    Values may be texts, since some harnesses split the arguments themselves.

    Raises:
        UnknownMethodError: no such method.
        BadParameterError: a value that is not of the parameter's type.
    """
    name = arguments.pop("method", None)
    if name is None or str(name).lower() == "none":
        return None
    cls = method_class(str(name))
    types = parameter_types(cls)
    given = {name: arguments.pop(name) for name in types if name in arguments}
    method = cls.from_dict(parse_typed(given, types, f"method={cls.name}, "))
    if method.is_identity:
        raise BadParameterError(
            f"method={cls.name} changes nothing as it is set: {method!r}; give its parameters, or method=none"
        )
    if method.lacks:
        raise BadParameterError(f"method={cls.name}: {method.lacks}")
    return method


def check_unknown(arguments: dict[str, Any], known: set[str], method: Method | None) -> None:
    """Refuse arguments that are parameters of neither the harness's model nor the method.

    Raises:
        BadParameterError: names them and the possible ones.
    """
    unknown = sorted(set(arguments) - known)
    if not unknown:
        return
    there = ", ".join(["method", *sorted(known)])
    own = [] if method is None else [field.name for field in dataclasses.fields(method)]
    near = near_names(unknown[0], [*known, *own, "method"], 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    if method is not None:
        there += f"; parameters of {method.name}: {', '.join(own) or 'none'}"
    raise BadParameterError(f"--model_args: unknown {', '.join(unknown)}{hint}; there are {there}")


def batch_size(value: Any, reason: str) -> int:
    """How many prompts run together, of a number or its text.

    Args:
        reason: why "auto" cannot be had, for the error.

    Raises:
        BadParameterError: "auto", or anything else that is not a whole number from 1 on.
    """
    text = str(value).strip()
    if text.isdecimal() and int(text):
        return int(text)
    hint = f" ({reason})" if text.startswith("auto") else ""
    raise BadParameterError(f"batch_size={text}: expected a whole number from 1 on{hint}")


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in _OPEN) - (character in _CLOSE)
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
