"""From --generate and --max-new-tokens to arguments of `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from regaze.arguments import parse_typed, split_assignments
from regaze.errors import BadParameterError
from regaze.toolkit.model.sampling_choice import with_sampling_choice

_Positive = Annotated[FiniteFloat, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, le=1)]
_PositiveShare = Annotated[float, Field(gt=0, le=1)]
_Cut = Annotated[float, Field(ge=0, lt=1)]
_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Tokens = Annotated[list[_Count], Field(min_length=1, description="token ids such as [5, 7]")]
_TokenLists = Annotated[
    list[_Tokens], Field(min_length=1, description="lists of token ids such as [[5, 7], [9]]")
]

#: The arguments that say something about one text answer and can be written on a command line.
_TYPES: dict[str, Any] = {
    "do_sample": bool,
    "temperature": Annotated[FiniteFloat, Field(ge=0)],
    "top_k": _Count,
    "top_p": _PositiveShare,
    "min_p": _Share,
    "typical_p": _PositiveShare,
    "epsilon_cutoff": _Cut,
    "eta_cutoff": _Cut,
    "repetition_penalty": _Positive,
    "encoder_repetition_penalty": _Positive,
    "no_repeat_ngram_size": _Count,
    "num_beams": Annotated[int, Field(ge=1, le=1024)],
    "length_penalty": FiniteFloat,
    "early_stopping": bool | Literal["never"],
    "min_new_tokens": _Count,
    "max_time": _Positive,
    "guidance_scale": Annotated[FiniteFloat, Field(ge=1)],
    "bad_words_ids": _TokenLists,
    "suppress_tokens": _Tokens,
    "begin_suppress_tokens": _Tokens,
    "forced_eos_token_id": _Count,
    "eos_token_id": _Count | _Tokens,
    "pad_token_id": _Count,
    "renormalize_logits": bool,
    "remove_invalid_values": bool,
    "use_cache": bool,
    "cache_implementation": Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized"],
}
#: Arguments that act on beams only.
_OF_BEAMS = ("length_penalty", "early_stopping")


def generation_options(assignments: Sequence[str] | None, max_new_tokens: int) -> dict[str, Any]:
    """Arguments of `generate`; an option of sampling means sampled answers.

    Raises:
        UnknownParameterError: an argument that cannot be given here.
        BadParameterError: a value out of range, an argument that another option sets, or that contradicts
            another.
    """
    texts = split_assignments(assignments or [], "--generate")
    for name in ("max_new_tokens", "max_length"):
        if name in texts:
            raise BadParameterError(f"--generate {name}: give --max-new-tokens")
    options = parse_typed(texts, _TYPES, "--generate ")
    try:
        options = with_sampling_choice(options) if options.keys() - {"do_sample"} else options
    except BadParameterError as error:
        raise BadParameterError(f"--generate {error}") from None
    _check_together(options, max_new_tokens)
    return {"max_new_tokens": max_new_tokens, **options}


def _check_together(options: Mapping[str, Any], max_new_tokens: int) -> None:
    beams, least = options.get("num_beams", 1), options.get("min_new_tokens", 0)
    if options.get("do_sample") and beams > 1:
        raise BadParameterError(f"--generate num_beams={beams}: beams are not sampled; leave one of them out")
    for name in _OF_BEAMS:
        if name in options and beams == 1:
            raise BadParameterError(
                f"--generate {name}={options[name]}: it needs beams; add num_beams=2 or more"
            )
    if least > max_new_tokens:
        raise BadParameterError(
            f"--generate min_new_tokens={least}: --max-new-tokens allows {max_new_tokens}"
        )
