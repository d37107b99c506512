"""The options of a run as YAML: --config reads them, run.yaml has them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

from regaze.arguments import parse_untyped, split_assignments
from regaze.errors import InputError
from regaze.eval.judges.urls import without_secrets
from regaze.names import find_name, suggestion
from regaze.reading import parse_yaml, read_text

#: Options that are a mapping in YAML, and NAME=VALUE, repeated, on the command line.
_MAPPINGS = ("set", "bench", "generate", "model_arg", "template_arg", "engine_arg")
#: Likewise, with several values each, which are a list in YAML and have commas between on the command line.
_GRIDS = ("tune", "grid")
#: Parameters of commands whose option has another name.
_OPTION_NAMES = {"settings": "set"}
#: Options that run.yaml leaves out: they do not change the results.
_NOT_SAVED = ("config", "debug", "json", "resume", "output", "html", "named")
#: Options that decide no answer: a run continues with others.
_NOT_DECISIVE = (
    *("batch_size", "max_errors", "share_prefix", "judge", "device", "export"),
    *("damage_check", "damage_data"),
)


def read_defaults(path: Path, parameters: Iterable[str]) -> dict[str, Any]:
    """Values of a command's parameters from a YAML file, in the form that the command line has.

    Raises:
        InputError: it cannot be read, is not YAML, or names an unknown option.
    """
    known = {_OPTION_NAMES.get(name, name): name for name in parameters}
    out = {}
    for key, value in _read(path).items():
        option = find_name(str(key), known)
        if option is None:
            raise InputError(f"--config {path}: no option {key!r}{suggestion(str(key), sorted(known))}")
        out[known[option]] = _as_argument(option, value, path)
    return out


def _read(path: Path) -> dict[Any, Any]:
    content = parse_yaml(read_text(path, "--config "), f"--config {path}")
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: expected options such as `benchmark: pope`, one per line")
    return content


def _as_argument(option: str, value: Any, path: Path) -> Any:
    """A YAML value as it would be typed."""
    if option in (*_MAPPINGS, *_GRIDS):
        if not isinstance(value, dict):
            raise InputError(f"--config {path}: {option} must be a mapping of names to values, got {value!r}")
        return [f"{name}={_as_text(entry, commas=option in _GRIDS)}" for name, entry in value.items()]
    if option == "methods" and isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _as_text(value: Any, commas: bool) -> str:
    if commas and isinstance(value, list):
        return ",".join(_as_text(entry, commas=False) for entry in value)
    return value if isinstance(value, str) else json.dumps(value)


def option_values(ctx: typer.Context) -> dict[str, Any]:
    """The values of all parameters of the command, in the order of its declaration."""
    names = (str(parameter.name) for parameter in ctx.command.params)
    return {name: ctx.params[name] for name in names if name in ctx.params}


def dump(options: Mapping[str, Any]) -> str:
    """The content of run.yaml: with it as --config the same run starts again."""
    saved: dict[str, Any] = {}
    for name, value in options.items():
        if name in _NOT_SAVED or value in (None, [], ()):  # () of a list that --config leaves out
            continue
        option = _OPTION_NAMES.get(name, name)
        if option == "judge":
            saved[option] = _judge_without_secrets(value)
        elif option in _GRIDS:
            saved[option] = dict(text.split("=", 1) for text in value)
        elif option in _MAPPINGS:
            assignments = split_assignments(value, f"--{option}")
            saved[option] = {key: _yaml_value(text) for key, text in assignments.items()}
        else:
            saved[option] = str(value) if isinstance(value, Path) else value
    text: str = yaml.safe_dump(saved, sort_keys=False, width=100)
    return text


def _judge_without_secrets(text: str) -> str:
    """--judge as it may be stored: of a URL, neither password nor query."""
    url, mark, model = text.partition("#")
    return without_secrets(url) + mark + model if "://" in url else text


def digest(options: Mapping[str, Any]) -> str:
    """A short hash of the options that decide answers, the same for each of their spellings here.

    Neither the order of the options counts, nor what is not given: a new option changes no folder.
    """
    decisive = {
        name: value
        for name, value in sorted(options.items())
        if name not in _NOT_DECISIVE and value is not False
    }
    return hashlib.sha256(dump(decisive).encode()).hexdigest()[:8]


def _yaml_value(text: str) -> Any:
    """`text` as a YAML value that is parsed as the same value again, whatever its type."""
    value = parse_untyped(text)
    return value if isinstance(value, (list, dict)) or json.dumps(value) == text else text
