"""`RecordOptions`: what a record keeps of each generation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from regaze.errors import RecordingError
from regaze.toolkit.model import compat

Rows = Literal["last", "text", "all"] | int


class RecordArguments(TypedDict, total=False):
    """The fields of `RecordOptions` as arguments, for type checkers."""

    masses: bool
    entropy: bool
    top1: bool
    lse: bool
    slices: Literal["image", "all"] | None
    layers: Iterable[int] | None
    rows: Rows
    steps: Iterable[int] | None
    edited: bool


@dataclass(frozen=True)
class RecordOptions:
    """What to record.

    Attributes:
        masses: attention mass by role (needs roles).
        entropy: entropy of the row in nats.
        top1: strongest column and its weight.
        lse: log-sum-exp of the scores.
        slices: the weights of the image columns ("image"), of all columns ("all"), or None.
        layers: layer numbers; None for every layer.
        rows: prefill rows: "last" (the one that predicts the first answer token), "text" (all text after the
            image), "all", or a number n: the last n tokens of each prompt. Decode steps have one row.
        steps: step numbers (0 is the prefill); None for every step.
        edited: record the rows after the edits of interventions; by default before them, which is what
            interventions measure.
    """

    masses: bool = True
    entropy: bool = False
    top1: bool = False
    lse: bool = False
    slices: Literal["image", "all"] | None = None
    layers: tuple[int, ...] | None = None
    rows: Rows = "last"
    steps: tuple[int, ...] | None = None
    edited: bool = False

    @classmethod
    def for_model(cls, model: Any, **options: Any) -> RecordOptions:
        """Options that are valid for a model. Raises RecordingError for what cannot be recorded."""
        unknown = set(options) - set(cls.__dataclass_fields__)
        if unknown:
            raise RecordingError(
                f"cannot record {', '.join(sorted(unknown))}; "
                f"choose from {', '.join(cls.__dataclass_fields__)}"
            )
        for name in ("layers", "steps"):
            if options.get(name) is not None:
                options[name] = _numbers(name, options[name])
        result = cls(**options)
        result._check(type(model).__name__, compat.text_config(model).num_hidden_layers)
        return result

    def _check(self, model: str, num_layers: int) -> None:
        if self.slices not in (None, "image", "all"):
            raise RecordingError(f'slices must be "image", "all" or None, got {self.slices!r}')
        is_count = isinstance(self.rows, int) and not isinstance(self.rows, bool) and self.rows >= 1
        if not is_count and self.rows not in ("last", "text", "all"):
            raise RecordingError(f'rows must be "last", "text" or "all" or a number, got {self.rows!r}')
        missing = [layer for layer in self.layers or () if not 0 <= layer < num_layers]
        if missing:
            raise RecordingError(f"layers {missing} do not exist: {model} has layers 0..{num_layers - 1}")
        if not (self.masses or self.entropy or self.top1 or self.lse or self.slices):
            raise RecordingError("nothing to record: ask for masses, entropy, top1, lse or slices")


def _numbers(name: str, values: Any) -> tuple[int, ...]:
    """Sorted, each once."""
    try:
        return tuple(sorted({int(value) for value in values}))
    except (TypeError, ValueError, OverflowError):
        raise RecordingError(f"{name} must be a list of numbers, got {values!r}") from None
