"""Benchmarks by name with the options of a command line: where their questions come from.

Every benchmark is a class with some of the constructors `of_demo` (the shipped scenes), `load` (files in the
official layout), `from_hub` and `build` (prompts made from a long text for the model's tokenizer); what these
take beyond places is an option of the benchmark.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regaze.arguments import parse_typed
from regaze.errors import InputError, UnknownParameterError
from regaze.eval import benchmarks
from regaze.eval.benchmarks.common.download import benchmark_folder
from regaze.eval.files import read_text

#: what a captions benchmark of the shipped scenes is called beside its own name
_ALIASES = {"captions": "chair"}
NAMES: tuple[str, ...] = (*benchmarks.NAMES, *_ALIASES)
DEMO, HUB = "demo", "hub"
#: constructor -> what --data says to have it
SOURCES = {"of_demo": DEMO, "load": "folder", "from_hub": HUB, "build": "a text"}
_FILLED_ELSEWHERE = ("folder", "images", "judge", "tokenizer", "haystack", "essay")


def find(name: str) -> Any:
    """The class of a benchmark. Raises InputError for an unknown name."""
    return benchmarks.load_class(_ALIASES.get(name, name))


def constructor(cls: Any, kind: str) -> Any:
    """One of a class's constructors, None where it has no such one."""
    return getattr(cls, kind, None)


def make(
    name: str,
    *,
    data: str | None = None,
    images: Path | None = None,
    settings: Mapping[str, str] | None = None,
    judge: Any = None,
    tokens: Callable[[], Any] | None = None,
) -> Any:
    """A benchmark with its questions.

    Args:
        data: "demo", "hub", a folder with the official files, or for long texts a file or a folder of them;
            None takes the shipped scenes where the benchmark has them, else what `regaze benchmarks get` has
            downloaded.
        images: folder of the images, for files.
        settings: options of its constructor as texts: JSON, or a bare word.
        judge: for benchmarks that are graded by one.
        tokens: gives the model's tokenizer, for prompts of a certain length.

    Raises:
        InputError: an unknown name, no questions to be had, no judge where one is needed.
        UnknownParameterError, BadParameterError: settings that do not fit.
    """
    make_it, places = _source(name, data, images, tokens)
    known = inspect.signature(make_it).parameters
    if images is not None:
        if "images" not in known:
            raise InputError(f"--images {images}: {name} from {data} brings its own images")
        places["images"] = images
    if "judge" in known:
        places["judge"] = judge
    return make_it(**places, **_options(name, settings or {}, parameters(make_it)))


def parameters(make_it: Any) -> dict[str, Any]:
    """The options of a constructor and their types.

    A constructor that hands **options on to its class takes the class's fields with a default, too.
    """
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(make_it)
    for parameter in inspect.signature(make_it).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            cls = make_it.__self__
            types = typing.get_type_hints(cls.__init__)
            for field in inspect.signature(cls).parameters.values():
                if field.default is not inspect.Parameter.empty and field.name != "name":
                    found.setdefault(field.name, types.get(field.name, Any))
        else:
            found[parameter.name] = hints.get(parameter.name, Any)
    return {name: hint for name, hint in found.items() if name not in _FILLED_ELSEWHERE}


def _source(
    name: str, data: str | None, images: Path | None, tokens: Callable[[], Any] | None
) -> tuple[Any, dict[str, Any]]:
    """The constructor that reads the source, and the places to give it."""
    cls = find(name)
    build = constructor(cls, "build")
    if build is not None and not (data is not None and any(Path(data).rglob("*.jsonl"))):
        return build, _texts(name, build, data, tokens)
    if data is None and images is None and constructor(cls, "of_demo") is not None:
        data = DEMO
    if data == DEMO:
        return _need(cls, "of_demo", f"{name} has no demo: give --data a folder, or hub"), {}
    if data == HUB:
        return _need(cls, "from_hub", f"{name} is not read from the hub: give --data a folder"), {}
    folder = Path(data) if data is not None else _downloaded(name)
    return _need(cls, "load", f"{name} is not read from a folder"), {"folder": folder}


def _need(cls: Any, kind: str, refusal: str) -> Any:
    found = constructor(cls, kind)
    if found is None:
        raise InputError(refusal)
    return found


def _downloaded(name: str) -> Path:
    folder = benchmark_folder(name)
    if not folder.is_dir():
        about = find(name).about
        where = (
            f"run `regaze benchmarks get {name}`, or" if about.files else f"get them from {about.home}, and"
        )
        hub = f", or take {about.hub} from the hub: --data hub" if about.hub else ""
        raise InputError(f"{name}: no questions; {where} say where they are: --data FOLDER{hub}")
    return folder


def _texts(name: str, build: Any, data: str | None, tokens: Callable[[], Any] | None) -> dict[str, Any]:
    """A long text and the tokenizer that measures it."""
    if tokens is None:
        raise InputError(f"{name} makes prompts of a certain number of tokens, so it needs a model")
    place = next(key for key in ("haystack", "essay") if key in inspect.signature(build).parameters)
    if data is None:
        if place == "haystack":
            raise InputError(
                f"{name} hides needles in a long text: give --data a text file or a folder of them"
            )
        return {"tokenizer": tokens()}
    path = Path(data)
    files = sorted(p for p in path.glob("*.txt*") if p.is_file()) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no text files (*.txt, *.txt.gz)")
    return {place: "\n\n".join(read_text(file) for file in files), "tokenizer": tokens()}


def _options(name: str, settings: Mapping[str, str], types: Mapping[str, Any]) -> dict[str, Any]:
    unknown = next((key for key in settings if key not in types), None)
    if unknown is not None:
        raise UnknownParameterError(
            f"{name} has no option {unknown!r} here; there are {', '.join(types) or 'none'}"
        )
    return parse_typed(settings, types, f"{name}, option ")
