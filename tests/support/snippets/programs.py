"""What can be said of a command without running it."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

from accelerate.commands.launch import launch_command_parser
from packaging.requirements import InvalidRequirement, Requirement
from paths import ROOT

from snippets import regaze_command, shell

Words = Sequence[str]


def check(words: Words) -> str | None:
    """What is wrong with a command, None where nothing is.

    Of our own (regaze, make, the extras, scripts) the names must exist; programs of others must be among
    those known here, so that a typing error is seen.
    """
    program, *arguments = words
    if program in CHECKS:
        return CHECKS[program](arguments)
    if program in OTHERS:
        return None
    return f"{program}: tests/support/snippets/programs.py has no check of it; add one, or skip the line"


def make(arguments: Words) -> str | None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    unknown = [
        word for word in arguments if not word.startswith("-") and "=" not in word and word not in targets
    ]
    return f"Makefile has no target {', '.join(unknown)}" if unknown else None


def pip(arguments: Words) -> str | None:
    """Requirements can be read, and extras of regaze exist."""
    extras = set(re.findall(r"^([\w-]+) = \[", _optional_dependencies(), re.MULTILINE))
    words, taken = (
        list(arguments[1:]),
        {"--no-binary", "--constraint", "-c", "--requirement", "-r", "--dest", "-d"},
    )
    while words:
        word = words.pop(0)
        if word in taken:
            words.pop(0)
        elif not word.startswith("-"):
            text = re.sub(r"^\.(?=\[|$)", "regaze", word)
            if "/" in text or text.endswith(".whl"):
                continue
            try:
                wanted = Requirement(text)
            except InvalidRequirement as error:
                return f"{word}: {error}"
            if wanted.name == "regaze" and not wanted.extras <= extras:
                return f"regaze has no extra {', '.join(wanted.extras - extras)}"
    return None


def _optional_dependencies() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", text, re.MULTILINE | re.DOTALL)[1]


class _ParsedError(Exception):
    """A script has read its arguments."""


def python(arguments: Words) -> str | None:
    """A script or module is there and takes the arguments; it is stopped when it has read them."""
    first, *rest = arguments
    if first == "-c":
        compile(rest[0], "-c", "exec")
        return None
    if first == "-m" and rest[0] in CHECKS:
        return check(rest)
    place = find_script(arguments)
    if place is None:
        return f"there is no {rest[0] if first == '-m' else first}"
    if "ArgumentParser" not in place.read_text(encoding="utf-8"):
        return None
    return _read_arguments(place, rest[1:] if first == "-m" else rest)


def find_script(arguments: Words) -> Path | None:
    """What `python` runs with these arguments: a module, or a script of the repository or of the page."""
    if arguments[0] == "-m":
        spec = find_spec(arguments[1])
        return Path(spec.origin) if spec and spec.origin else None
    return next((path for path in (Path(arguments[0]), ROOT / arguments[0]) if path.is_file()), None)


def _read_arguments(script: Path, arguments: Words) -> str | None:
    read = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: object) -> None:
        read(parser, *given)
        raise _ParsedError

    messages = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", [str(script), *arguments]),
        mock.patch.object(sys, "path", [str(script.parent), *sys.path]),
        contextlib.redirect_stderr(messages),
    ):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except _ParsedError:
            return None
        except SystemExit:
            pass
    return messages.getvalue().strip() or "it does not read its arguments"


def accelerate(arguments: Words) -> str | None:
    """Its own options, and what follows `-m regaze`."""
    if arguments[0] != "launch":
        return None
    messages = io.StringIO()
    with contextlib.redirect_stderr(messages):
        try:
            options = launch_command_parser().parse_args(list(arguments[1:]))
        except SystemExit:
            return messages.getvalue().strip().splitlines()[-1]
    if options.module and options.training_script == "regaze":
        return regaze_command.parse(options.training_script_args)
    return None


def script(arguments: Words) -> str | None:
    """`bash -c SCRIPT`: every command in it."""
    if "-c" not in arguments:
        return None
    inner = shell.commands(arguments[list(arguments).index("-c") + 1])
    return next(filter(None, (check(each.words) for each in inner)), None)


def wrapper(arguments: Words) -> str | None:
    """A program that starts another: that one."""
    at = next((at for at, word in enumerate(arguments) if word in CHECKS), None)
    return None if at is None else check(arguments[at:])


CHECKS: dict[str, Callable[[Words], str | None]] = {
    "accelerate": accelerate,
    "bash": script,
    "make": make,
    "pip": pip,
    "python": python,
    "python3": python,
    "regaze": regaze_command.parse,
    "srun": wrapper,
}
#: Programs of others, of whose arguments nothing is said.
OTHERS = frozenset(
    {".", "apt-get", "cat", "cd", "git", "head", "hf", "scontrol", "tar", "unzip"}
    | {"inspect", "lm-eval", "lmms-eval"}
)
