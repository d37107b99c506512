"""What a request carries: methods as its sender names them, and after admission the roles of its tokens.

A request names methods under the key "regaze" of vLLM's `SamplingParams.extra_args`, over HTTP in
`vllm_xargs`, which has no nested values, as a JSON text. What admission found travels on under the same key
to the processes that run the model, since only the first one always has all that a prompt is read from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

import torch

from regaze.errors import BadParameterError, InputError, UnsupportedModelError
from regaze.interventions import registry
from regaze.interventions.base import Intervention, Method
from regaze.interventions.method_files import names_file
from regaze.reading import parse_json
from regaze.serving.common.limits import METHODS, check_limit
from regaze.serving.common.release import KEY
from regaze.serving.common.support import FILES, REFUSED
from regaze.toolkit.prompts.token_map import TokenMap, View

#: What the salts begin with that are made here: no sender may give one of them.
_SALTED = f"{KEY}-"


def methods_of(asked: Any, *, trusted: bool = False) -> tuple[Intervention, ...]:
    """The methods that a request names, without those that change nothing.

    Args:
        asked: {"method": name, parameter: value, ...}, a list of these, or the JSON text of either; of a
            registered method without parameters the name alone will do.
        trusted: whoever runs the engine has named them, and may name files of parameters. Code is run for
            nobody.

    Raises:
        BadParameterError: it is none of these, or names a control, or a file with code or parameters, or more
            methods than one request may have.
        UnsupportedModelError: an engine does not do what the method needs.
        UnknownMethodError, UnknownParameterError: as `gaze.using` of the same method.
    """
    if isinstance(asked, str):
        text = asked.strip()
        asked = parse_json(text, f"the request's {KEY!r}") if text[:1] in ("{", "[") else {"method": text}
    each = asked if isinstance(asked, list | tuple) else [asked]
    if not trusted:
        check_limit(METHODS, len(each))
    named = [_checked(one, trusted) for one in each]
    return tuple(method for one in named if not (method := _method(one)).is_identity)


def _checked(asked: Any, trusted: bool) -> str:
    """A method that may be made here, as a JSON text. No code of its own has run until now."""
    if isinstance(asked, str):
        asked = {"method": asked}
    if not isinstance(asked, Mapping) or not isinstance(asked.get("method"), str):
        raise BadParameterError(
            f'a request names a method as {{"method": name, parameter: value, ...}}, got {asked!r}'
        )
    for text in _texts(asked):
        if names_file(text):  # a sender must not choose which code a server runs
            raise BadParameterError(
                f"an engine runs registered methods, not files: {text!r}; announce the method as an entry "
                "point of a package that is installed beside vLLM"
            )
    name = registry.registered_name(asked["method"])
    if name in REFUSED:
        raise UnsupportedModelError(f"{name}: {REFUSED[name]}; an engine of vLLM does not; use transformers")
    if name in registry.CONTROLS:
        raise BadParameterError(f"{name!r} is a control, which engines do not run: use transformers")
    for parameter in FILES.get(name, ()):
        if not trusted and asked.get(parameter) is not None:
            raise BadParameterError(
                f"{name!r}: {parameter} names a file, which only whoever starts the engine may do "
                "(REGAZE_SERVING_METHODS, or `regaze serve --method ... --set ...`)"
            )
    try:
        return json.dumps(dict(asked), sort_keys=True)
    except TypeError as error:
        raise BadParameterError(f"{name!r}: parameters of a request are plain values: {error}") from None


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _texts(pair)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


@lru_cache(maxsize=256)
def _method(asked: str) -> Intervention:
    """Methods keep no state, so requests share them."""
    method = registry.method_from_dict(json.loads(asked))
    if not isinstance(method, Intervention):
        raise BadParameterError(
            f"{method.name!r} answers in several passes, each a request of its own: use it at the client, "
            "or under transformers with gaze.ask(..., method=...)"
        )
    return method


def packed(methods: Sequence[Method], tokens: TokenMap) -> dict[str, Any]:
    """What a request carries after admission, as plain values."""
    places = {name: getattr(tokens, name)[0].tolist() for name in ("roles", "view", "cell")}
    views = [{**vars(view), "picture": None} for view in tokens.views[0]]
    return {"methods": [method.to_dict() for method in methods], **places, "views": views}


def unpacked(carried: Mapping[str, Any]) -> tuple[tuple[Intervention, ...], TokenMap]:
    """Inverse of `packed`."""
    roles = torch.tensor([carried["roles"]], dtype=torch.uint8)
    view, cell = (torch.tensor([carried[name]], dtype=torch.int32) for name in ("view", "cell"))
    views = tuple(_view(each) for each in carried["views"])
    return methods_of(list(carried["methods"]), trusted=True), TokenMap(roles, view, cell, (views,))


def _view(values: Mapping[str, Any]) -> View:
    pairs: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return View(**pairs)


def text_of(methods: Sequence[Method]) -> str:
    """Methods with all of their parameters, as a text that is the same for the same ones."""
    return json.dumps([method.to_dict() for method in methods], sort_keys=True, default=str)


def salt(methods: str, given: str | None) -> str:
    """The `cache_salt` of a request: its pages are shared by requests with the same methods alone.

    Args:
        methods: as `text_of` has them.
        given: the salt that the request has already.
    """
    return f"{_SALTED}{sha256('/'.join((given or '', methods)).encode()).hexdigest()}"


def shared_rows(params: Any) -> int | None:
    """How many rows of an admitted request others may take from the cache; None: all, answers included."""
    extra = None if params is None else params.extra_args
    carried = (extra or {}).get(KEY)
    rows: int | None = carried.get("shared") if isinstance(carried, Mapping) else None
    return rows


def check_salt(given: str | None) -> None:
    """Refuse a sender's salt that could be one of `salt`: it would share pages with edited requests."""
    if given is not None and given.startswith(_SALTED):
        raise InputError(f"a cache_salt that begins with {_SALTED!r} is made by the server: choose another")
