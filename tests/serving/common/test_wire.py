"""What requests name, and what travels with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from acting_methods import acting

from regaze.errors import (
    BadParameterError,
    InputError,
    UnknownMethodError,
    UnknownParameterError,
    UnsupportedModelError,
)
from regaze.interventions import VAR, HeadKnockout, MoA, registry
from regaze.interventions.parameters import parameters_of
from regaze.serving.common.support import FILES, RUNS
from regaze.serving.common.wire import check_salt, methods_of, packed, salt, text_of, unpacked
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
        ({"method": "opera"}, UnsupportedModelError, "answers in several passes"),
        ("PAINT", UnsupportedModelError, "vision tower"),
        ({"method": "marine", "detector": "/tmp"}, UnsupportedModelError, "marine: it runs a detector"),
        ("random-heads", BadParameterError, "is a control"),
        ({"method": "uniform_columns", "of": "vaf"}, BadParameterError, "is a control"),
        ({"method": "moa", "plan": "/etc/hostname"}, BadParameterError, "plan names a file"),
        ({"method": "MoA", "plan": ""}, BadParameterError, "plan names a file"),
        ("{'method'", Exception, "request"),
        ({"method": "/tmp/mine.py:Mine"}, BadParameterError, "registered methods, not files"),
        ("mine.py:Mine", BadParameterError, "registered methods, not files"),
    ],
)
def test_what_no_request_may_name(asked, error, message):
    with pytest.raises(error, match=message):
        methods_of(asked)


HIDDEN = [
    lambda file: {"method": "uniform-columns", "of": file},
    lambda file: {"method": "uniform-columns", "of": {"method": file}},
    lambda file: {"method": "uniform-columns", "of": {"method": "random-heads", "of": {"method": file}}},
    lambda file: [{"method": "var"}, {"method": "var", "rho": [{"any": file}]}],
]


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("asked", HIDDEN)
def test_no_request_runs_a_file_at_any_depth(tmp_path, asked, trusted):
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    for form in (asked(f"{tmp_path}/mine.py:Mine"), json.dumps(asked(f"{tmp_path}/mine.py:Mine"))):
        with pytest.raises(BadParameterError, match="registered methods, not files"):
            methods_of(form, trusted=trusted)
    assert not ran.exists()


def test_who_starts_the_engine_may_name_files_of_parameters(tmp_path):
    plan = str(tmp_path / "plan.json")
    (method,) = methods_of({"method": "moa", "plan": plan}, trusted=True)
    assert method == MoA(plan=plan)
    tokens = TokenMap.from_samples([PromptTokens((5,), (-1,), (-1,), ())], torch.ones(1, 1, dtype=torch.bool))
    assert unpacked(packed((method,), tokens))[0] == (method,)


#: Parameters that are read as they are, by no file's name.
SENTENCES = {"icd": ("prefix",)}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_parameter_that_takes_any_text_is_known_to_name_a_file(name):
    cls: Any = registry.method_class(name)
    texts = [each.name for each in parameters_of(cls) if takes_text(name, each.name)]
    assert tuple(texts) == (*FILES.get(name, ()), *SENTENCES.get(name, ()))


def takes_text(name: str, parameter: str) -> bool:
    try:
        acting(name, **{parameter: "/etc/hostname"})
    except BadParameterError:
        return False
    return True


@pytest.mark.parametrize("given", ["regaze-", salt(text_of((VAR(),)), None)])
def test_a_sender_gives_no_salt_of_an_edited_request(given):
    with pytest.raises(InputError, match="choose another"):
        check_salt(given)


@pytest.mark.parametrize("given", [None, "", "mine", "my-regaze-salt"])
def test_other_salts_are_the_senders(given):
    check_salt(given)


def test_salts_differ_by_methods_parameters_and_the_given_salt():
    one, other = HeadKnockout(heads=((0, 1),)), HeadKnockout(heads=((0, 2),))
    first, second, both = map(text_of, ((one,), (other,), (one, VAR())))
    assert len({salt(first, None), salt(second, None), salt(both, None), salt(first, "mine")}) == 4
    assert salt(first, None) == salt(text_of(methods_of(KNOCKOUT)), None)


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
