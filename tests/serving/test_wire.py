"""What requests name, and what travels with them."""

from __future__ import annotations

import json

import pytest
import torch

from regaze.errors import BadParameterError, UnknownMethodError, UnknownParameterError
from regaze.interventions import VAR, HeadKnockout
from regaze.serving.wire import methods_of, packed, salt, unpacked
from regaze.toolkit.prompts.token_map import PromptTokens, Role, TokenMap, View

KNOCKOUT = {"method": "knockout", "heads": [[0, 1]]}


@pytest.mark.parametrize(
    ("asked", "methods"),
    [
        (KNOCKOUT, (HeadKnockout(heads=((0, 1),)),)),
        (json.dumps(KNOCKOUT), (HeadKnockout(heads=((0, 1),)),)),
        ([KNOCKOUT, {"method": "var"}], (HeadKnockout(heads=((0, 1),)), VAR())),
        (json.dumps([KNOCKOUT, "var"]), (HeadKnockout(heads=((0, 1),)), VAR())),
        ("var", (VAR(),)),
        ({"method": "var", "moved": 0.0}, ()),
        ([], ()),
    ],
)
def test_methods_of_requests(asked, methods):
    assert methods_of(asked) == methods


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"methd": "var"}, BadParameterError, "a request names a method as"),
        (7, BadParameterError, "a request names a method as"),
        ("vra", UnknownMethodError, "vra"),
        ({"method": "var", "rh": 1}, UnknownParameterError, "rh"),
        ({"method": "opera"}, BadParameterError, "answers in several passes"),
        ("{'method'", Exception, "request"),
        ({"method": "/tmp/mine.py:Mine"}, BadParameterError, "registered methods, not files"),
        ("mine.py:Mine", BadParameterError, "registered methods, not files"),
    ],
)
def test_what_no_request_may_name(asked, error, message):
    with pytest.raises(error, match=message):
        methods_of(asked)


def test_salts_differ_by_methods_parameters_and_the_given_salt():
    one, other = HeadKnockout(heads=((0, 1),)), HeadKnockout(heads=((0, 2),))
    salts = {salt((one,), None), salt((other,), None), salt((one, VAR()), None), salt((one,), "mine")}
    assert len(salts) == 4
    assert salt((one,), None) == salt(methods_of(KNOCKOUT), None)


def test_roles_travel_as_plain_values():
    views = (View((1, 2), 0), View((0, 0), 1, (0.0, 0.0, 0.5, 1.0)))
    roles = (Role.SYSTEM, Role.IMAGE, Role.IMAGE, Role.IMAGE, Role.QUERY, Role.TAIL)
    sample = PromptTokens(tuple(map(int, roles)), (-1, 0, 0, 1, -1, -1), (-1, 0, 1, -1, -1, -1), views)
    tokens = TokenMap.from_samples([sample], torch.ones(1, 6, dtype=torch.bool))
    carried = json.loads(json.dumps(packed((VAR(rho=0.3),), tokens)))
    methods, again = unpacked(carried)
    assert methods == (VAR(rho=0.3),)
    for name in ("roles", "view", "cell"):
        assert torch.equal(getattr(again, name), getattr(tokens, name))
        assert getattr(again, name).dtype == getattr(tokens, name).dtype
    assert again.views == tokens.views
