"""What a request carries: methods as its sender names them, and after admission the roles of its tokens.

A request names methods under the key "regaze" of vLLM's `SamplingParams.extra_args`, over HTTP in
`vllm_xargs`, which has no nested values, as a JSON text. What admission found travels on under the same key
to the processes that run the model, since only the first one always has all that a prompt is read from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from hashlib import sha256
from typing import Any

import torch

from regaze.errors import BadParameterError
from regaze.interventions import registry
from regaze.interventions.base import Intervention, Method
from regaze.interventions.method_files import names_file
from regaze.reading import parse_json
from regaze.serving.release import KEY
from regaze.toolkit.prompts.token_map import TokenMap, View


def methods_of(asked: Any) -> tuple[Intervention, ...]:
    """The methods that a request names, without those that change nothing.

    Args:
        asked: {"method": name, parameter: value, ...}, a list of these, or the JSON text of either; of a
            registered method without parameters the name alone will do.

    Raises:
        BadParameterError: it is none of these, or names a method that answers in several passes or a file.
        UnknownMethodError, UnknownParameterError: as `gaze.using` of the same method.
    """
    if isinstance(asked, str):
        text = asked.strip()
        asked = parse_json(text, f"the request's {KEY!r}") if text[:1] in ("{", "[") else {"method": text}
    each = asked if isinstance(asked, list | tuple) else [asked]
    return tuple(method for one in each if not (method := _method(_canonical(one))).is_identity)


def _canonical(asked: Any) -> str:
    if isinstance(asked, str):
        asked = {"method": asked}
    if not isinstance(asked, Mapping) or not isinstance(asked.get("method"), str):
        raise BadParameterError(
            f'a request names a method as {{"method": name, parameter: value, ...}}, got {asked!r}'
        )
    if names_file(asked["method"]):  # a sender must not choose which code a server runs
        raise BadParameterError(
            f"an engine runs registered methods, not files: {asked['method']!r}; announce the method as an "
            "entry point of a package that is installed beside vLLM"
        )
    try:
        return json.dumps(dict(asked), sort_keys=True)
    except TypeError as error:
        raise BadParameterError(
            f"{asked['method']!r}: parameters of a request are plain values: {error}"
        ) from None


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
    views = [{**asdict(view), "picture": None} for view in tokens.views[0]]
    return {"methods": [method.to_dict() for method in methods], **places, "views": views}


def unpacked(carried: Mapping[str, Any]) -> tuple[tuple[Intervention, ...], TokenMap]:
    """Inverse of `packed`."""
    roles = torch.tensor([carried["roles"]], dtype=torch.uint8)
    view, cell = (torch.tensor([carried[name]], dtype=torch.int32) for name in ("view", "cell"))
    views = tuple(_view(each) for each in carried["views"])
    return methods_of(list(carried["methods"])), TokenMap(roles, view, cell, (views,))


def _view(values: Mapping[str, Any]) -> View:
    pairs: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return View(**pairs)


def salt(methods: Sequence[Method], given: str | None) -> str:
    """The `cache_salt` of a request: its pages are shared by requests with the same methods alone.

    Args:
        given: the salt that the request has already.
    """
    named = json.dumps([method.to_dict() for method in methods], sort_keys=True, default=str)
    return f"{KEY}-{sha256('/'.join((given or '', named)).encode()).hexdigest()}"
