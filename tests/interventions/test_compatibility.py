"""All methods: what they share, the page that lists them, and every pair of them on one model."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from acting_methods import INSIDE, acting
from decoding_checks import assert_same_scores
from models import llava_processor, logits_of, picture, tiny_llava
from paths import DOCS

import regaze
from regaze.errors import CompositionError
from regaze.interventions import EViT, methods_page
from regaze.interventions.compatibility import INCOMPATIBLE, why_incompatible
from regaze.interventions.controls import Control
from regaze.interventions.registry import (
    BUILT_IN,
    default_methods,
    list_controls,
    load_methods,
    method_class,
)


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(tiny_llava(seed=3), llava_processor())


@pytest.fixture(scope="module")
def inputs(gaze):
    """One prompt with an image, one without, of different lengths."""
    return gaze.inputs([picture(5), None], ["Is there a dog in this picture?", "Where is the dog?"])


@pytest.mark.parametrize("cls", [*load_methods().values(), EViT], ids=lambda cls: cls.name)
def test_every_method_says_what_it_is(cls):
    for part in ("name", "summary", "source", "edits", "cost"):
        assert getattr(cls, part), f"{cls.__name__}.{part} is empty"
    assert cls.__doc__
    assert cls().is_identity in (True, False)
    assert cls.from_dict(cls().to_dict()) == cls()


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_has_a_control_or_says_why_not(name):
    own = acting(name)
    assert own.controls() or "control" in type(own).__doc__ or "controls" in vars(type(own))


@pytest.mark.parametrize("name", list_controls())
def test_every_control_says_what_it_is_and_is_no_method(name):
    cls = method_class(name)
    for part in ("name", "summary", "source", "edits", "cost"):
        assert getattr(cls, part), f"{cls.__name__}.{part} is empty"
    assert cls.__doc__
    assert issubclass(cls, Control)
    assert cls.name == name
    assert name not in load_methods()
    assert name not in default_methods()


def test_the_page_of_methods_is_up_to_date():
    assert (DOCS / "reference" / "methods.md").read_text(encoding="utf-8") == methods_page.page()


def test_a_reason_is_found_in_either_order():
    for (first, second), reason in INCOMPATIBLE.items():
        assert why_incompatible(first, second) == why_incompatible(second, first) == reason
    assert why_incompatible("vcd", "var") is None


@pytest.mark.parametrize("name", INSIDE)
def test_every_method_changes_the_logits_and_leaves_no_trace(gaze, inputs, name):
    plain = logits_of(gaze.model, inputs, tokens=3)
    with gaze.using(acting(name)):
        edited = logits_of(gaze.model, inputs, tokens=3)
    assert not torch.equal(edited, plain)
    assert not edited.isnan().any()
    assert torch.equal(logits_of(gaze.model, inputs, tokens=3), plain)


#: Pairs of methods that act inside of the model, by a first one: all of them, each once.
PAIRS = {first: INSIDE[number + 1 :] for number, first in enumerate(INSIDE[:-1])}


@pytest.mark.slow
@pytest.mark.parametrize("first", PAIRS)
@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.exhaustive)])
def test_pairs_work_in_either_order_or_raise(gaze, inputs, first, which):
    seconds = PAIRS[first] if which == "all" else random.Random(first).sample(PAIRS[first], 1)
    for second in seconds:
        outcomes = []
        for pair in itertools.permutations((first, second)):
            try:
                with gaze.using(*map(acting, pair)):
                    outcomes.append(logits_of(gaze.model, inputs, tokens=2))
            except CompositionError as error:
                outcomes.append(str(error))
        if why_incompatible(first, second):
            assert all(isinstance(outcome, str) for outcome in outcomes), (first, second)
            continue
        assert not any(isinstance(outcome, str) for outcome in outcomes), (first, second, outcomes)
        assert not outcomes[0].isnan().any()
        torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-3, atol=1e-3)


#: One method of each kind of edits, by what the classes declare.
KINDS = {acting(name).facts.edits: name for name in INSIDE if name != "vti"}


@pytest.mark.parametrize("name", KINDS.values())
def test_edits_of_the_vision_tower_act_beside_every_kind_of_edit(gaze, inputs, name):
    """In either order, and not as either alone; a prompt without an image has no tower to edit."""
    tower = acting("vti", text=0.0)
    with gaze.using(acting(name)):
        alone = logits_of(gaze.model, inputs, tokens=4)
    together = []
    for pair in itertools.permutations((tower, acting(name))):
        with gaze.using(*pair):
            together.append(logits_of(gaze.model, inputs, tokens=4))
    assert not together[0].isnan().any()
    torch.testing.assert_close(together[0], together[1], rtol=1e-4, atol=1e-4)
    with gaze.using(tower):
        assert not torch.equal(together[0], logits_of(gaze.model, inputs, tokens=4))
    assert not torch.equal(together[0][:, 0], alone[:, 0])
    assert_same_scores(
        together[0][:, 1], alone[:, 1]
    )  # a prompt without an image, which has no tower to edit
