"""Benchmarks by name: find the class, and choose the constructor for the source of the questions.

Every benchmark is a class with some of the constructors `of_demo` and `of_bed` (shipped scenes), `load`
(files in the official layout), `from_hub` and `build` (prompts made from a long text for the model's
tokenizer). Their parameters are the options of the benchmark, except for those that say where files are.
"""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regaze.arguments import parse_typed
from regaze.errors import InputError, UnknownParameterError
from regaze.eval import benchmarks
from regaze.eval.benchmarks.common.download import benchmark_folder
from regaze.names import find_name, known_name, suggestion
from regaze.reading import StrPath, read_text

#: further names of benchmarks
_ALIASES = {"captions": "chair"}
NAMES: tuple[str, ...] = (*benchmarks.NAMES, *_ALIASES)
DEMO, BED, HUB = "demo", "bed", "hub"
#: constructor -> the value of --data that selects it
SOURCES = {"of_demo": DEMO, "of_bed": BED, "load": "folder", "from_hub": HUB, "build": "a text"}
_NOT_OPTIONS = ("folder", "images", "judge", "tokenizer", "haystack", "essay")


def registered_name(text: str) -> str:
    """The benchmark that a text names in any spelling; the text itself where there is none."""
    return known_name(text, NAMES)


def benchmark_class(name: str) -> Any:
    """The class of a benchmark, whose name may have any capitals. Raises InputError for an unknown name."""
    name = registered_name(name)
    return benchmarks.load_class(_ALIASES.get(name, name))


def find_constructor(cls: Any, kind: str) -> Any:
    """A constructor of a benchmark class; None where the class does not have it."""
    return getattr(cls, kind, None)


def make_benchmark(
    name: str,
    *,
    data: StrPath | None = None,
    images: StrPath | None = None,
    settings: Mapping[str, str] | None = None,
    judge: Any = None,
    load_tokenizer: Callable[[], Any] | None = None,
    model: str | None = None,
) -> Any:
    """A benchmark with its questions.

    Args:
        data: "demo", "bed", "hub", a folder with the official files, or for long texts a file or a folder of
            them; None takes shipped scenes where the benchmark has them, else what `regaze benchmarks get`
            has downloaded.
        images: folder of the images, for files; for those of the hub, too, in place of its own.
        settings: options of the constructor as texts, see `regaze.arguments`.
        judge: for benchmarks that a judge grades.
        load_tokenizer: returns the model's tokenizer, for prompts of a certain length.
        model: who is asked: without `data` "bed" is asked about its own scenes, any other about the demo's.

    Raises:
        InputError: an unknown name, no source of questions, no judge where one is needed.
        UnknownParameterError, BadParameterError: settings that do not fit the constructor.
    """
    constructor, arguments = _select_source(name, data, images, load_tokenizer, model)
    parameters = inspect.signature(constructor).parameters
    if images is not None:
        if "images" not in parameters:
            raise InputError(f"--images {images}: {name} from {data} brings its own images")
        arguments["images"] = images
    if "judge" in parameters:
        arguments["judge"] = judge
    types = option_types(constructor)
    unknown = next((option for option in settings or {} if find_name(option, types) is None), None)
    if unknown is not None:
        raise UnknownParameterError(f"{name} has no option {unknown!r} here{suggestion(unknown, types)}")
    return constructor(**arguments, **parse_typed(settings or {}, types, f"{name}, option "))


def option_types(constructor: Any) -> dict[str, Any]:
    """{option: type annotation} of a constructor.

    Where a constructor passes **options on to its class, the fields of the class that have a default are
    options, too.
    """
    types: dict[str, Any] = {}
    hints = typing.get_type_hints(constructor)
    for parameter in inspect.signature(constructor).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            cls = constructor.__self__
            of_class = typing.get_type_hints(cls.__init__)
            for field in inspect.signature(cls).parameters.values():
                if field.default is not inspect.Parameter.empty and field.name != "name":
                    types.setdefault(field.name, of_class.get(field.name, Any))
        else:
            types[parameter.name] = hints.get(parameter.name, Any)
    return {name: hint for name, hint in types.items() if name not in _NOT_OPTIONS}


def _select_source(
    name: str,
    data: StrPath | None,
    images: StrPath | None,
    load_tokenizer: Callable[[], Any] | None,
    model: str | None,
) -> tuple[Any, dict[str, Any]]:
    """The constructor for the source, and its arguments that say where files are."""
    cls = benchmark_class(name)
    build = find_constructor(cls, "build")
    if build is not None and not (data is not None and any(Path(data).rglob("*.jsonl"))):
        return build, _long_text(name, build, data, load_tokenizer)
    shipped = BED if model == BED else DEMO
    if data is None and images is None and find_constructor(cls, f"of_{shipped}") is not None:
        data = shipped
    if data in (DEMO, BED):
        message = f"{name} has no questions about the scenes of the {data}: give --data a folder, or hub"
        return _require(cls, f"of_{data}", message), {}
    if data == HUB:
        return _require(cls, "from_hub", f"{name} is not read from the hub: give --data a folder"), {}
    folder = Path(data) if data is not None else _downloaded_folder(name)
    return _require(cls, "load", f"{name} is not read from a folder"), {"folder": folder}


def _require(cls: Any, kind: str, message: str) -> Any:
    constructor = find_constructor(cls, kind)
    if constructor is None:
        raise InputError(message)
    return constructor


def _downloaded_folder(name: str) -> Path:
    folder = benchmark_folder(name)
    if not os.path.isdir(folder):
        about = benchmark_class(name).about
        where = (
            f"run `regaze benchmarks get {name}`, or" if about.files else f"get them from {about.home}, and"
        )
        hub = f", or take {about.hub} from the hub: --data hub" if about.hub else ""
        raise InputError(f"{name}: no questions; {where} say where they are: --data FOLDER{hub}")
    return folder


def _long_text(
    name: str, build: Any, data: StrPath | None, load_tokenizer: Callable[[], Any] | None
) -> dict[str, Any]:
    """The text that prompts are made from, and the tokenizer that measures them."""
    if load_tokenizer is None:
        raise InputError(f"{name} makes prompts of a certain number of tokens, so it needs a model")
    parameter = next(key for key in ("haystack", "essay") if key in inspect.signature(build).parameters)
    if data is None:
        if parameter == "haystack":
            raise InputError(
                f"{name} hides needles in a long text: give --data a text file or a folder of them"
            )
        return {"tokenizer": load_tokenizer()}
    path = Path(data)
    files = sorted(p for p in path.glob("*.txt*") if os.path.isfile(p)) if os.path.isdir(path) else [path]
    if not files:
        raise InputError(f"{path} holds no text files (*.txt, *.txt.gz)")
    return {parameter: "\n\n".join(read_text(file) for file in files), "tokenizer": load_tokenizer()}
