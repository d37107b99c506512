"""Commands and options that the sentences of a page name: they are not run, but must exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import lru_cache

from accelerate.commands.launch import launch_command_parser
from paths import ROOT

from regaze.cli.app import COMMANDS, load_command
from snippets import programs

_FENCES = re.compile(r"^[ \t]*```.*?^[ \t]*```", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"`((?:regaze|make|pip|python3?)\s[^`]+|--[a-z][^`]*)`")
_SCRIPTS = ("benchmarks/*.py", "docs/*.py", "regaze/*/training/*.py", "regaze/interventions/*.py")
#: of pip, of the harnesses and of vLLM
_OTHERS = frozenset(
    {
        "--apply_chat_template",
        "--batch_size",
        "--enforce-eager",
        "--include_path",
        "--long-prefill-token-threshold",
        "--no-async-scheduling",
        "--no-deps",
        "--no-enable-chunked-prefill",
        "--tensor-parallel-size",
        "--use_cache",
    }
)


def problems(text: str) -> Iterator[str]:
    """What a page names in its sentences and does not exist."""
    for match in _NAMED.finditer(_FENCES.sub("", text)):
        words = shlex.split(match[1])
        problem = _option(words[0]) if words[0].startswith("-") else _command(words)
        if problem:
            yield f"`{match[1]}`: {problem}"


def _option(word: str) -> str | None:
    name = re.split("[=,]", word)[0]
    return None if name in _known_options() | _OTHERS else f"no command or script has {name}"


@lru_cache
def _known_options() -> frozenset[str]:
    """Of all commands, of our scripts, and of `accelerate launch`."""
    scripts = (path for pattern in _SCRIPTS for path in ROOT.glob(pattern))
    texts = (path.read_text(encoding="utf-8") for path in scripts)
    ours = {name for text in texts for name in re.findall(r"[\"'](--[\w-]+)[\"']", text)}
    launch = {name for action in launch_command_parser()._actions for name in action.option_strings}
    return frozenset(ours | launch).union(*map(options_of, COMMANDS))


def options_of(command: str) -> frozenset[str]:
    return frozenset(
        name
        for parameter in load_command(command).params
        for name in (*parameter.opts, *parameter.secondary_opts, "-h", "--help")
    )


def _command(words: list[str]) -> str | None:
    program, *rest = words
    if program in ("make", "pip"):
        return programs.check(words)
    if program == "regaze":
        return _regaze(rest)
    script = programs.find_script(rest)
    if script is None:
        return "there is no such script or module"
    options = {word.split("=")[0] for word in rest if word.startswith("--")}
    text = script.read_text(encoding="utf-8")
    unknown = [name for name in options if not re.search(rf"{name}(?![\w-])", text)]
    return f"it has no {', '.join(unknown)}" if unknown else None


def _regaze(words: list[str]) -> str | None:
    """The command and its options; arguments may be missing, or names in capitals that stand for them."""
    command = words[0]
    if command.startswith("-") or command.isupper():
        return None
    if command not in COMMANDS:
        return f"there is no command {command!r}"
    if command in ("lm-eval", "serve"):  # which have those of the harness, and of vLLM
        return None
    given = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    unknown = given - options_of(command)
    return f"{command} has no {', '.join(sorted(unknown))}" if unknown else None
