"""Every text family of the zoo: idle equal, roles, masses, head knock-out, prompts; and who is refused."""

from __future__ import annotations

import pytest
import torch
from family_checks import CHECKS, Case, case_of, outcome
from models import logits_of
from zoo import text
from zoo.base import Entry

import regaze
from regaze import HeadKnockout
from regaze.errors import BadParameterError, UnsupportedModelError

ENTRIES: tuple[Entry, ...] = tuple(entry for entry in text.ENTRIES if entry.refused is None)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_family(entry: Entry, check: str):
    assert outcome(entry, check)


@pytest.mark.parametrize("entry", [e for e in text.ENTRIES if e.refused], ids=lambda entry: entry.name)
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
    assert len(ENTRIES) >= 15
    assert isinstance(case_of(ENTRIES[0]), Case)


def test_a_layer_without_attention_has_no_heads():
    case = case_of(next(entry for entry in ENTRIES if entry.name == "lfm2"))
    nowhere = HeadKnockout(heads=((0, 0),))
    with case.gaze.using(nowhere), pytest.raises(BadParameterError, match=r"layers \[1\]"):
        logits_of(case.model, case.inputs(0))
