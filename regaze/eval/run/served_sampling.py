"""Arguments of transformers' `generate` as parameters of vLLM's sampling, as far as both do the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regaze.errors import BadParameterError

#: Arguments with the same meaning in both, by their names in vLLM.
_SHARED = {"repetition_penalty": "repetition_penalty", "min_new_tokens": "min_tokens"}
#: Those of sampled answers.
_OF_SAMPLES = ("temperature", "top_k", "top_p", "min_p")
#: Those that are seen to otherwise.
_ELSEWHERE = ("do_sample", "max_new_tokens", "pad_token_id")
#: Values with which an argument changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "use_cache": (True, False),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "guidance_scale": (1.0,),
}
#: Of a model's own configuration what no greedy answer depends on, or vLLM reads by itself.
_SILENT = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("max_length", "max_new_tokens", "transformers_version", "use_cache", "cache_implementation"),
    *("output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate"),
}


def acting_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's configuration of `generate` what changes answers that are asked for greedily."""
    return {name: value for name, value in config.items() if name not in _SILENT and name[0] != "_"}


def engine_sampling(options: Mapping[str, Any], limit: int | None, key: str, seed: int) -> dict[str, Any]:
    """Arguments of `SamplingParams` for the answer to one request.

    Args:
        options: of `generate`. limit: the most tokens.
        key: of the request; a sampled answer comes of a stream of its own, by key and seed.

    Raises:
        BadParameterError: an argument that vLLM does not have.
    """
    sampled = bool(options.get("do_sample"))
    found: dict[str, Any] = {"max_tokens": 128 if limit is None else limit, "temperature": 0.0}
    if sampled:
        found |= {"temperature": 1.0, "seed": (int(key[:15], 16) + seed) % 2**63}
    for name, value in options.items():
        if value is None or name in _ELSEWHERE or value in _NEUTRAL.get(name, ()):
            continue
        if name in _SHARED:
            found[_SHARED[name]] = value
        elif name in _OF_SAMPLES:
            if sampled:
                found[name] = value
        elif name == "eos_token_id":
            found |= {"stop_token_ids": value if isinstance(value, list) else [value], "ignore_eos": True}
        else:
            raise BadParameterError(
                f"{name}={value!r} is an argument of transformers' generate that vLLM does not have: use "
                "--engine transformers"
            )
    return found
