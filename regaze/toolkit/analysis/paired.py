"""An analysis of the plain and of the edited model on the same tokens, and the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from regaze.display import short_repr
from regaze.errors import BadParameterError, ShapeError
from regaze.toolkit.analysis.answers import Inputs, with_answers
from regaze.toolkit.analysis.forward import run_forward
from regaze.toolkit.analysis.heads import HeadTable
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.prompts.token_map import TokenMap
from regaze.toolkit.wrap import Gaze

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PairedResult(Generic[T]):
    """Results of an analysis for the plain and the edited model.

    Attributes:
        plain, edited: the two results.
        difference: edited - plain in every float; everything else is that of `edited`.
        inputs: the prompts and answers of both runs.
    """

    plain: T
    edited: T
    difference: T
    inputs: Inputs

    __repr__ = short_repr


def plain_and_edited(
    gaze: Gaze,
    inputs: Mapping[str, Any],
    methods: Callback | Sequence[Callback],
    analysis: Callable[..., T],
    *,
    answers: Tensor | Sequence[str] | None = None,
    record: Mapping[str, Any] | None = None,
    max_new_tokens: int = 32,
    **options: Any,
) -> PairedResult[T]:
    """Run an analysis on the plain model and on the model with `methods`, on the same tokens.

    The answers are given, not generated (teacher forcing), so that rows of both runs correspond:

        both = plain_and_edited(gaze, inputs, VAR(), rollout, rows="answer")
        both = plain_and_edited(gaze, inputs, VAR(), role_flow, record={"rows": "all"})

    Args:
        inputs: from `gaze.inputs`, or from `with_answers`, which has the answers.
        methods: interventions, as for `gaze.using`.
        analysis: called as analysis(gaze, inputs, **options) or, with `record`, as
            analysis(record, **options) with a record of the forward; any function with such a signature.
        answers: [B, T] ids or texts; default: the plain model's greedy answers of at most `max_new_tokens`.
        record: arguments of `gaze.recording`; rows are recorded as edited.
        options: further arguments of `analysis`.

    Raises:
        BadParameterError: no methods.
    """
    chosen = (methods,) if isinstance(methods, Callback) else tuple(methods)
    if not chosen:
        raise BadParameterError("plain_and_edited needs at least one intervention, such as VAR()")
    if isinstance(inputs, Inputs):
        forced = inputs
    else:
        forced = with_answers(
            gaze, inputs, _generated(gaze, inputs, max_new_tokens) if answers is None else answers
        )

    def analyse() -> T:
        if record is None:
            return analysis(gaze, forced, **options)
        settings = {"edited": True, "rows": "text", **record}
        with gaze.recording(tokens=forced.tokens, **settings) as recorded, torch.no_grad():
            run_forward(gaze, forced)
        return analysis(recorded, **options)

    plain = analyse()
    with gaze.using(*chosen, tokens=forced.tokens):
        edited = analyse()
    return PairedResult(plain, edited, difference(plain, edited), forced)


def _generated(gaze: Gaze, inputs: Mapping[str, Any], max_new_tokens: int) -> Tensor:
    """[B, T] ids of the plain model's greedy answers."""
    model: Any = gaze.model
    with torch.no_grad():
        sequences = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return sequences[:, inputs["input_ids"].shape[1] :]


def difference(plain: T, edited: T) -> T:
    """edited - plain, in every float and float tensor of two results of the same type.

    Recurses into dataclasses, tuples, lists and dicts. Everything else (ids, texts, roles) is taken from
    `edited`.

    Raises:
        ShapeError: results with different types, shapes or lengths.
    """
    if type(plain) is not type(edited):
        raise ShapeError(f"cannot subtract a {type(plain).__name__} from a {type(edited).__name__}")
    return _subtract(plain, edited)


def _subtract(plain: Any, edited: Any) -> Any:
    if isinstance(edited, Tensor):
        return _subtract_tensors(plain, edited)
    if isinstance(edited, float):
        return edited - plain
    if isinstance(edited, HeadTable):
        return edited.minus(plain)  # the rows of both are sorted differently
    if is_dataclass(edited) and not isinstance(edited, (TokenMap, type)):
        names = [field.name for field in fields(edited) if field.init]
        changes = {name: difference(getattr(plain, name), getattr(edited, name)) for name in names}
        return replace(edited, **changes)
    if isinstance(edited, dict):
        pairs = {name: (plain.get(name, value), value) for name, value in edited.items()}
        return {name: difference(*pair) for name, pair in pairs.items()}
    if isinstance(edited, (tuple, list)):
        return _subtract_sequences(plain, edited)
    return edited


def _subtract_tensors(plain: Tensor, edited: Tensor) -> Any:
    if not edited.is_floating_point():
        return edited
    if plain.shape != edited.shape:
        raise ShapeError(
            f"cannot subtract {list(plain.shape)} from {list(edited.shape)}: compare the same tokens"
        )
    return edited - plain


def _subtract_sequences(plain: Any, edited: Any) -> Any:
    if len(plain) != len(edited):
        raise ShapeError(f"cannot subtract {len(plain)} entries from {len(edited)}: compare the same tokens")
    parts = [difference(a, b) for a, b in zip(plain, edited, strict=True)]
    return type(edited)(*parts) if hasattr(edited, "_fields") else type(edited)(parts)
