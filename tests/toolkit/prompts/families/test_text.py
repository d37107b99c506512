"""Every text family of the zoo: idle equal, roles, masses, head knock-out, prompts; and who is refused."""

from __future__ import annotations

import pytest
import torch
from families_page import PAGE, STALE, row
from family_checks import CHECKS, case_of, outcome
from models import logits_of
from zoo.base import Entry
from zoo.every import REFUSED, TEXT, skip_if_older, skip_page_if_other_release

import regaze
from regaze import HeadKnockout
from regaze.errors import BadParameterError, UnsupportedModelError


@pytest.mark.parametrize("check", [*CHECKS, "page"])
@pytest.mark.parametrize("entry", TEXT, ids=lambda entry: entry.name)
def test_family(entry: Entry, check: str):
    skip_if_older(entry)
    if check == "page":
        skip_page_if_other_release()
        assert row(entry) in PAGE.read_text(encoding="utf-8").splitlines(), STALE
    else:
        assert outcome(entry, check)


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry.name)
def test_who_is_refused(entry: Entry):
    """A clear error, and a model that is as it was."""
    model, tokenizer = entry.build()
    gaze = regaze.wrap(model, tokenizer)
    inputs = gaze.inputs([None], ["Why?"])
    plain = logits_of(model, inputs)
    with pytest.raises(UnsupportedModelError, match=entry.refused), gaze.using(HeadKnockout(heads=((0, 0),))):
        logits_of(model, inputs)
    assert torch.equal(plain, logits_of(model, inputs))


def test_the_zoo_is_as_large_as_promised():
    assert len(TEXT) >= 15


def test_a_layer_without_attention_has_no_heads():
    case = case_of(next(entry for entry in TEXT if entry.name == "lfm2"))
    nowhere = HeadKnockout(heads=((0, 0),))
    with case.gaze.using(nowhere), pytest.raises(BadParameterError, match=r"layers \[1\]"):
        logits_of(case.model, case.inputs(0))
