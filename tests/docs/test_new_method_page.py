"""The method of docs/recipes/write-a-method.md is run as it stands there, in about forty lines."""

from __future__ import annotations

import re
import sys
import textwrap
import types

import pytest
import torch
from models import logits_of, picture
from paths import DOCS

from regaze.interventions.controls import PlausibilityCut, UniformColumns

PAGE = DOCS / "recipes" / "write-a-method.md"


@pytest.fixture(scope="module")
def louder():
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S).group(1)
    body = code[code.index("@dataclass") :].strip().splitlines()
    assert len(body) <= 45
    module = types.ModuleType("louder_of_the_page")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    yield module.Louder
    del sys.modules[module.__name__]


def test_the_controls_of_the_page(louder, model, gaze):
    """Its own, and why it has no other: a bias that is the same everywhere makes no choice to lose."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[1]
    names = {"PlausibilityCut": PlausibilityCut}
    exec(textwrap.dedent(code), names)
    assert names["controls"](louder()) == (PlausibilityCut(0.1),)
    assert names["controls"](louder(weight=0.0)) == ()
    inputs, found = gaze.inputs([picture(0)], ["What is there?"]), []
    for method in (louder(gain=1.0), UniformColumns(louder(gain=1.0))):
        with gaze.using(method):
            found.append(logits_of(model, inputs))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_the_method_of_the_page_works_and_keeps_its_promises(louder, model, gaze):
    inputs = gaze.inputs([picture(0), picture(1)], ["What is there?", "Is there a dog in it?"])
    plain = logits_of(model, inputs)
    with gaze.using(louder(gain=0.0, weight=0.0)):
        assert torch.equal(logits_of(model, inputs), plain)
    with gaze.using(louder(gain=1.0)):
        both = logits_of(model, inputs)
        alone = logits_of(model, gaze.inputs([picture(0)], ["What is there?"]))
    assert not torch.equal(both, plain)
    torch.testing.assert_close(both[:, 0], alone[:, 0], rtol=1e-3, atol=1e-3)
    assert louder.from_dict(louder(gain=2.0).to_dict()) == louder(gain=2.0)
