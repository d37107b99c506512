"""Whether options of `generate` ask for samples or for the likeliest tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regaze.errors import BadParameterError

#: Options that act on samples only, and the value at which each does nothing.
_SAMPLING = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
#: Options whose whole numbers transformers refuses or compares by type.
_FLOATS = (
    *(_SAMPLING.keys() - {"top_k"}),
    "repetition_penalty",
    "encoder_repetition_penalty",
    "length_penalty",
    "guidance_scale",
)


def with_sampling_choice(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `generate` in which `do_sample` says what the others ask for.

    A temperature, or another option of sampling that does something, turns sampling on; without sampling
    transformers would ignore it. A temperature of 0 means the likeliest tokens, where `do_sample` is not
    given as True. A whole number given for a float becomes one. Options in a `generation_config` count, too.

    Raises:
        BadParameterError: an option of sampling beside `do_sample=False`.
    """
    given = {
        name: float(value) if name in _FLOATS and type(value) is int else value
        for name, value in options.items()
    }
    config = given.get("generation_config")
    settings = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
    explicit = given.get("do_sample")
    explicit = getattr(config, "do_sample", None) if explicit is None else explicit
    if explicit is None:
        of_config = {name: getattr(config, name, None) for name in _SAMPLING}
        settings = {name: value for name, value in of_config.items() if value is not None} | settings
    greedy = explicit is not True and settings.get("temperature") == 0
    acting = [name for name, value in settings.items() if value != _SAMPLING[name]]
    if explicit is not None and not explicit and acting and not greedy:
        name = acting[0]
        raise BadParameterError(
            f"{name}={settings[name]!r} changes how answers are sampled, but do_sample=False takes the "
            "likeliest tokens: give one of the two"
        )
    if explicit is None:
        given["do_sample"] = not greedy and bool(acting or "temperature" in settings)
    if not given.get("do_sample", True):
        for name in settings:
            given.pop(name, None)
    return given


def with_length(options: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Options of `generate` with at most so many new tokens, unless these or their config say how many.

    Raises:
        BadParameterError: a max_length, which counts the prompt with its padding: answers would depend on
            the other prompts of a batch.
    """
    config = options.get("generation_config")
    length, new = (
        getattr(config, name, None) if options.get(name) is None else options[name]
        for name in ("max_length", "max_new_tokens")
    )
    if length is not None and new is None:
        raise BadParameterError(
            f"max_length={length} counts the prompts, too, as long as the longest of a batch: give "
            "max_new_tokens, the length of an answer"
        )
    return dict(options) if new is not None else {**options, "max_new_tokens": tokens}
