"""NAME=VALUE: a text becomes a value of the parameter's type, or an error says what is expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from regaze.arguments import parameter_types, parse_typed, parse_untyped, split_assignments
from regaze.errors import BadParameterError, UnknownParameterError


def read_settings(cls, settings):
    return parse_typed(split_assignments(settings, "--set"), parameter_types(cls), "--set ")


@dataclass(frozen=True)
class Sample:
    """One field of each kind that interventions have."""

    rho: float = 0.5
    top: int = 1
    released: bool = False
    mode: Literal["zero", "uniform"] = "zero"
    label: str = ""
    limit: float | None = 1.0
    heads: tuple[tuple[int, int], ...] = ()
    layers: tuple[int, ...] | None = None


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rho=0.25", 0.25),
        ("rho=1", 1.0),
        ("rho=-2e-3", -0.002),
        ("top=7", 7),
        ("released=true", True),
        ("released=False", False),
        ("mode=uniform", "uniform"),
        ('mode="uniform"', "uniform"),
        ("label=a=b", "a=b"),
        ("label=12", "12"),
        ("label=", ""),
        ("label=none", "none"),
        ("limit=none", None),
        ("limit=null", None),
        ("limit=3", 3.0),
        ("heads=[[3, 1], [0, 2]]", ((3, 1), (0, 2))),
        ("heads=[]", ()),
        ("layers=[1,2]", (1, 2)),
        ("layers=None", None),
        ("layers=1,2", (1, 2)),
        ("layers=3", (3,)),
    ],
)
def test_values_have_the_type_of_the_parameter(setting, value):
    read = read_settings(Sample, [setting])[setting.split("=")[0]]
    assert read == value
    assert type(read) is type(value)


WRONG = (
    "rho=much rho=true rho= top=1.5 top=true released=2 mode=half heads=3 heads=[[1]] limit=[1] layers=[0.5]"
)


@pytest.mark.parametrize("setting", WRONG.split())
def test_a_value_of_another_type_is_named_with_what_is_expected(setting):
    name = setting.split("=")[0]
    expected = "'zero' or 'uniform'" if name == "mode" else Sample.__annotations__[name][:4]
    with pytest.raises(BadParameterError, match=rf"--set {name}=.*: expected {expected}"):
        read_settings(Sample, [setting])


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(UnknownParameterError, match=r"'rhoo'; did you mean 'rho'\? There are rho, top, rel"):
        read_settings(Sample, ["rhoo=1"])
    with pytest.raises(BadParameterError, match="expected NAME=VALUE"):
        read_settings(Sample, ["rho"])
    assert read_settings(Sample, []) == {}
    assert read_settings(Sample, ["rho=1", "rho=2"]) == {"rho": 2.0}


def test_values_that_are_no_texts_are_converted():
    given = {"top": 3.0, "heads": [[3.0, 1.0]], "limit": None}
    parsed = parse_typed(given, parameter_types(Sample), "")
    assert parsed == {"top": 3, "heads": ((3, 1),), "limit": None}
    with pytest.raises(BadParameterError, match=r"model: top=3\.5: expected int"):
        parse_typed({"top": 3.5}, parameter_types(Sample), "model: ")


class Opaque:
    """No type that pydantic knows."""


def test_a_type_that_no_text_can_be_is_refused():
    with pytest.raises(BadParameterError, match="--set tag=x: can be given in Python only"):
        parse_typed({"tag": "x"}, {"tag": Opaque}, "--set ")


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("True", True), ("none", None), ("[1, 2]", [1, 2]), ("a word", "a word")]
)
def test_without_a_type_a_text_is_json_or_itself(text, value):
    assert parse_untyped(text) == value
