"""The commands of a shell block, as bash understands them; none of them is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

#: What pages take from the environment.
_VARIABLES = {"SLURM_NNODES": "2", "SLURM_NODEID": "0"}
#: Bash calls this in the place of every program: it finds none, since PATH names no folder. It prints
#: something, for $(...). Of bash's own commands those are replaced that read a file or leave the folder. All
#: on one line, which is taken off the numbers of lines.
_LISTEN = (
    r"""command_not_found_handle() { """
    r"""printf '%s\0' "${BASH_LINENO[0]}" "$@" $'\x1e' >> "$COMMANDS"; echo 1; }; """
    """cd() { command_not_found_handle cd "$@"; }; """
    """.() { command_not_found_handle . "$@"; }; source() { command_not_found_handle . "$@"; }\n"""
)


@dataclass(frozen=True)
class Command:
    """A program and its arguments: variables, loops, quotes and continued lines are resolved.

    Attributes:
        line: number of its last line in the block, from 1.
    """

    words: tuple[str, ...]
    line: int

    def __str__(self) -> str:
        return " ".join(self.words)


def commands(source: str) -> list[Command]:
    """Every program that a block starts, in order.

    Raises:
        ValueError: bash cannot read the block.
    """
    bash = shutil.which("bash")
    assert bash, "bash reads the commands of the pages"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "commands"
        log.touch()
        done = subprocess.run(
            [bash, "--noprofile", "--norc", "-c", _LISTEN + source],
            cwd=folder,
            env={"PATH": os.devnull, "COMMANDS": str(log), **_VARIABLES},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        if done.stderr:
            raise ValueError(done.stderr.strip())
        records = log.read_text(encoding="utf-8").split("\0\x1e\0")[:-1]
    return [
        Command(tuple(words), int(line) - 1) for line, *words in (record.split("\0") for record in records)
    ]
