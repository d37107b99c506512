"""A method from a Python file that belongs to no package: `path/to/file.py:Class`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from regaze.errors import UnknownMethodError
from regaze.reading import read_text

if TYPE_CHECKING:
    from regaze.interventions.base import Method


def names_file(text: str) -> bool:
    """Whether a text names a method by its file."""
    return text.endswith(".py") or text.rpartition(":")[0].endswith(".py")


def load_from_file(text: str) -> type[Method]:
    """Run a file and return its class, with the hash of the file, which stored answers are known by.

    Raises:
        InputError: the file cannot be read.
        UnknownMethodError: its code fails, it has no such class, or the class is no method with a name.
    """
    from regaze.interventions.base import Method  # here, so that listing names does not import torch

    file, name = (text, "") if text.endswith(".py") else (text.rpartition(":")[0], text.rpartition(":")[2])
    module, sha256 = _run(Path(file))
    found: Any = getattr(module, name, None) if name else None
    if not (isinstance(found, type) and issubclass(found, Method)):
        there = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
        ]
        choices = ", ".join(f"{file}:{key}" for key in there)
        raise UnknownMethodError(
            f"{text} is no subclass of regaze.interventions.Intervention or MultiPassMethod; "
            + (f"there is {choices}" if there else f"{file} has none")
        )
    if not found.name:
        raise UnknownMethodError(f'{text} has no name; add `name: ClassVar[str] = "..."` to the class')
    cls: type[Method] = found
    cls.file_sha256 = sha256
    return cls


def _run(path: Path) -> tuple[ModuleType, str]:
    """The module of a file, and the hash of what was run; once per process, unless the file changes."""
    source = read_text(path, "--method ")
    sha256 = hashlib.sha256(source.encode()).hexdigest()
    name = f"regaze_method_{hashlib.sha256(f'{path.resolve()} {sha256}'.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name], sha256
    module = ModuleType(name)
    module.__file__ = str(path.resolve())
    sys.modules[name] = module  # where dataclasses and type hints look their names up
    try:
        # Not by an import, which may run an older compiled file.
        exec(compile(source, str(path), "exec"), vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the file can fail in any way, by sys.exit too
        del sys.modules[name]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnknownMethodError(f"{path} cannot be run: {reason}") from error
    return module, sha256
