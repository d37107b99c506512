"""How much one request may ask of an engine, and who may change it."""

from __future__ import annotations

import re

import pytest

from regaze.errors import BadParameterError, InputError
from regaze.serving.common.limits import CONTEXTS, METHODS, check_limit
from regaze.serving.common.wire import methods_of


@pytest.mark.parametrize(("variable", "most"), [(METHODS, 8), (CONTEXTS, 16)])
def test_more_than_the_limit_is_refused_with_what_to_set(monkeypatch, variable, most):
    monkeypatch.delenv(variable, raising=False)
    check_limit(variable, most)
    with pytest.raises(
        BadParameterError, match=rf"has {most + 1} .* may have {most}: .*{variable}={most + 1}"
    ):
        check_limit(variable, most + 1)
    monkeypatch.setenv(variable, str(most + 1))
    check_limit(variable, most + 1)
    monkeypatch.setenv(variable, "0")
    check_limit(variable, 0)
    with pytest.raises(BadParameterError, match="may have 0"):
        check_limit(variable, 1)


@pytest.mark.parametrize("value", ["many", "-1", "1.5"])
def test_a_limit_that_is_no_number_is_named(monkeypatch, value):
    monkeypatch.setenv(METHODS, value)
    with pytest.raises(InputError, match=re.escape(f"{METHODS} is a number of methods, got '{value}'")):
        check_limit(METHODS, 1)


def test_senders_name_so_many_methods_and_no_more(monkeypatch):
    monkeypatch.setenv(METHODS, "2")
    assert len(methods_of(["var", "vaf"])) == 2
    with pytest.raises(BadParameterError, match="has 3 methods"):
        methods_of(["no such method"] * 3)
    assert len(methods_of(["var", "vaf", "pai"], trusted=True)) == 3  # whoever starts the engine may
