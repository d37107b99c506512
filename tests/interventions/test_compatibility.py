"""All methods: what they share, the page that lists them, and every pair of them on one model."""

from __future__ import annotations

import itertools

import pytest
import torch
from directions import ict_directions, nullu_directions, vti_directions
from models import SMALL_VAR, llava_processor, logits_of, picture, tiny_llava
from paths import DOCS

import regaze
from regaze.errors import CompositionError
from regaze.interventions import EViT, methods_page
from regaze.interventions.compatibility import INCOMPATIBLE, why_incompatible
from regaze.interventions.controls import Control
from regaze.interventions.registry import default_methods, list_controls, load_methods, method_class

#: What a random model of six layers needs so that a method edits something in it.
PARAMETERS = {
    "var": SMALL_VAR,
    "knockout": {"heads": ((1, 0), (3, 2))},
    "agla": {"relevance": lambda image, text: (torch.arange(64.0).view(8, 8), 0.6)},
    "cai": {"layers": (4, 5)},
    "memvr": {"threshold": 0.3, "layers": (1, 4)},
    "mma": {"trained": True},
    "adhh": {"heads": ((0, 3), (2, 1), (5, 2)), "threshold": 0.1},
    "ict": {"directions": ict_directions()},
    "nullu": {"directions": nullu_directions()},
    "vti": {"directions": vti_directions()},
}
#: Not run by `model.generate`: they generate several times.
ELSEWHERE = {"carve", "degf", "opera"}


def method(name: str):
    return load_methods()[name](**PARAMETERS.get(name, {}))


RUNNABLE = sorted({*PARAMETERS, *default_methods()} - ELSEWHERE)


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
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == methods_page.page()


def test_a_reason_is_found_in_either_order():
    for (first, second), reason in INCOMPATIBLE.items():
        assert why_incompatible(first, second) == why_incompatible(second, first) == reason
    assert why_incompatible("vcd", "var") is None


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_method_changes_the_logits_and_leaves_no_trace(gaze, inputs, name):
    plain = logits_of(gaze.model, inputs, tokens=3)
    with gaze.using(method(name)):
        edited = logits_of(gaze.model, inputs, tokens=3)
    assert not torch.equal(edited, plain)
    assert not edited.isnan().any()
    assert torch.equal(logits_of(gaze.model, inputs, tokens=3), plain)


@pytest.mark.slow
@pytest.mark.parametrize("first", RUNNABLE)
def test_every_pair_works_in_either_order_or_raises(gaze, inputs, first):
    for second in RUNNABLE:
        if second <= first:
            continue
        outcomes = []
        for pair in itertools.permutations((first, second)):
            try:
                with gaze.using(*map(method, pair)):
                    outcomes.append(logits_of(gaze.model, inputs, tokens=2))
            except CompositionError as error:
                outcomes.append(str(error))
        if why_incompatible(first, second):
            assert all(isinstance(outcome, str) for outcome in outcomes), (first, second)
            continue
        assert not any(isinstance(outcome, str) for outcome in outcomes), (first, second, outcomes)
        assert not outcomes[0].isnan().any()
        torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-3, atol=1e-3)
