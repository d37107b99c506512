"""Hyper-parameters: what annotations allow, in words and checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, NonNegativeFloat, PositiveInt

from regaze.arguments import in_words, parse_typed
from regaze.errors import BadParameterError
from regaze.interventions.base import Method
from regaze.interventions.layer_ranges import LayerRange
from regaze.interventions.parameters import Fraction, Heads, Layers, PositiveFraction, parameters_of


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (float, "float"),
        (Fraction, "float in [0, 1]"),
        (PositiveFraction, "float in (0, 1]"),
        (Annotated[int, Field(ge=0, lt=1000)], "int in [0, 1000)"),
        (NonNegativeFloat, "float >= 0"),
        (PositiveInt | None, "int > 0 or None"),
        (Annotated[float, Field(lt=2.5)], "float < 2.5"),
        (Literal["a", "b", "c"], "'a', 'b' or 'c'"),
        (tuple[int, ...], "tuple[int, ...]"),
        (tuple[tuple[PositiveInt, float], ...] | None, "tuple[tuple[int > 0, float], ...] or None"),
        (Heads, "(layer, head) pairs such as ((3, 1), (4, 0))"),
        (
            Annotated[str | Callable[[int], Any], Field(description="a name or a function")],
            "a name or a function",
        ),
    ],
)
def test_annotations_in_words(annotation, words):
    assert in_words(annotation) == words


@dataclass(frozen=True)
class Sample(Method):
    """A field of each kind."""

    name = "sample"
    share: Fraction = field(default=0.5, metadata={"help": "how much"})
    count: PositiveInt | None = None
    heads: Heads = ()
    layers: Layers | None = None
    range: LayerRange | None = None
    weights: tuple[tuple[float, ...], ...] | None = None


def test_parameters_are_described():
    share, count, *_ = parameters_of(Sample)
    assert (share.name, share.allowed) == ("share", "float in [0, 1]")
    assert (share.default, share.help) == (0.5, "how much")
    assert (count.allowed, count.default) == ("int > 0 or None", None)


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, "half", None, True])
def test_a_refusal_names_method_parameter_limits_value_and_meaning(value):
    with pytest.raises(BadParameterError) as refused:
        Sample(share=value)
    text = str(refused.value)
    assert text.startswith(f"'sample': share must be float in [0, 1], got {value!r}")
    assert text.endswith(". share: how much")
    assert ("not a finite number" in text) == (value is math.nan)


def test_collections_become_tuples_and_numbers_those_of_python():
    sample = Sample(
        share=np.float32(0.25),
        heads=[[3, 1], torch.tensor([0, 2]), (3, 1)],
        layers={4, 1},
        range=np.array([1, 5]),
        weights=[[1, 0.5]],
    )
    assert sample == Sample(0.25, None, ((3, 1), (0, 2)), (1, 4), (1, 5), ((1.0, 0.5),))
    assert type(sample.share) is float
    assert hash(sample) == hash(Sample.from_dict(sample.to_dict()))


def test_an_int_for_a_float_stays_as_given():
    assert repr(Sample(share=1).share) == "1"


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_fraction_is_accepted_exactly_in_its_range(value):
    if 0.0 <= value <= 1.0:
        assert Sample(share=value).share == value
    else:
        with pytest.raises(BadParameterError):
            Sample(share=value)


@given(st.lists(st.tuples(st.integers(-2, 9), st.integers(-2, 9))))
def test_heads_are_kept_once_in_their_order(pairs):
    if any(number < 0 for pair in pairs for number in pair):
        with pytest.raises(BadParameterError, match="heads must be"):
            Sample(heads=pairs)
    else:
        assert list(Sample(heads=pairs).heads) == list(dict.fromkeys(pairs))


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (Layers, "0-3", (0, 1, 2, 3)),
        (Layers, "8,0-2", (0, 1, 2, 8)),
        (Layers | None, "5", (5,)),
        (LayerRange | None, "9-14", (9, 14)),
        (LayerRange, "5", (5, 5)),
        (LayerRange, "9,14", (9, 14)),
        (LayerRange, "[9, 14]", (9, 14)),
        (LayerRange | None, "none", None),
    ],
)
def test_layers_may_be_written_as_a_range(annotation, text, value):
    assert parse_typed({"layers": text}, {"layers": annotation}, "") == {"layers": value}


@pytest.mark.parametrize("annotation", [Layers, LayerRange])
@pytest.mark.parametrize("text", ["3-1", "a-b", "-1", "0-99999999"])
def test_what_is_no_range_is_refused(annotation, text):
    with pytest.raises(BadParameterError, match=rf"layers={text}: expected .*layer"):
        parse_typed({"layers": text}, {"layers": annotation}, "")
