"""The declared facts of every method, compared with what it is seen to do."""

from __future__ import annotations

import pytest
from acting_methods import INSIDE, SEVERAL, acting
from models import picture
from observed import Observed

from regaze.errors import BadParameterError
from regaze.interventions import MultiPassMethod
from regaze.interventions.facts import Facts, in_engine
from regaze.interventions.fitting.base import FittedIntervention
from regaze.interventions.registry import BUILT_IN, method_class

#: Parameters that a user has to give, and the need that says so.
GIVEN = {
    "directions": "fit",
    "trained": "trained model",
    "relevance": "relevance model",
    "generator": "generator",
    "detector": "detector",
}
SEEN = ("second context", "vision tower", "hidden states", "layer logits")


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(1), picture(2)], ["Is there a dog in the image?", "What is this?"])


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_declares_what_its_class_shows(name):
    cls = method_class(name)
    facts, parameters = cls.facts, cls.__dataclass_fields__
    assert isinstance(facts, Facts), f"{cls.__name__} declares no facts"
    for parameter, need in GIVEN.items():
        assert (parameter in parameters) == (need in facts.needs), need
    assert hasattr(cls, "heads_in") == ("head list" in facts.needs)
    assert issubclass(cls, FittedIntervention) == ("fit" in facts.needs)
    assert issubclass(cls, MultiPassMethod) == (facts.graphs == "outside")
    if acting(name).shares_prefix:
        assert not {"second context", "whole prompt"} & {*facts.needs}
    assert in_engine(facts)


@pytest.mark.parametrize("name", INSIDE)
def test_every_method_does_what_it_declares(gaze, inputs, name):
    facts, seen = method_class(name).facts, Observed(gaze, acting(name), inputs)
    edits = {*facts.edits}
    if "weights" in seen.edits and "weights" not in edits:  # coefficients that are the same for all channels
        seen.edits = (seen.edits - {"weights"}) | {"head outputs"}
    assert seen.edits == edits
    assert seen.when == {*facts.when}
    assert seen.cost == facts.cost
    assert seen.needs - {"all heads"} == {need for need in facts.needs if need in SEEN}
    assert "all heads" not in seen.needs or "all heads" in facts.needs


def test_those_that_ask_several_times_are_dear():
    for name in SEVERAL:
        assert method_class(name).facts.cost in ("several answers", "many rows")


def test_facts_are_of_known_kinds():
    with pytest.raises(BadParameterError, match=r"Facts.edits: 'score' is none of image, "):
        Facts(edits=("score",), cost="one forward")
    with pytest.raises(BadParameterError, match=r"Facts.cost: 'cheap' is none of fewer rows, "):
        Facts(edits=("scores",), cost="cheap")
    with pytest.raises(BadParameterError, match="what is edited"):
        Facts(edits=(), cost="one forward")


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (Facts(edits=("scores",), cost="one forward"), "its attention"),
        (Facts(edits=("logits",), cost="one forward"), "a logits processor"),
        (
            Facts(edits=("weights", "logits"), cost="two rows", needs=("second context", "all heads")),
            "its attention; a second request per prompt, kept in step; all heads of a layer, gathered under "
            "tensor parallelism",
        ),
        (
            Facts(edits=("MLP outputs",), cost="another prefill", graphs="broken"),
            "a measuring prefill before the request; hooks on MLPs",
        ),
        (
            Facts(
                edits=("image",),
                when=("before",),
                cost="several answers",
                graphs="outside",
                needs=("attention rows",),
            ),
            "several requests, one after the other; rows of attention handed out",
        ),
        (
            Facts(edits=("search",), cost="many rows", graphs="outside", needs=("own search",)),
            "no: it goes back in a search, which is the engine's own",
        ),
    ],
)
def test_what_a_serving_engine_would_have_to_give(facts, text):
    assert in_engine(facts) == text
