"""Workers that share the heads of a layer: what fails on one of them has failed on all."""

from __future__ import annotations

import pytest
from lonely import PLACES, announce
from served import answers

from regaze.interventions import registry

pytestmark = pytest.mark.vllm

KNOCKOUT = {"method": "knockout", "heads": [[0, 0], [0, 3]]}
GIFT = {"method": "gift"}
STEP = 2


@pytest.fixture(scope="module")
def two(start, tmp_path_factory):
    """An engine with two workers, who know the method that fails on one of them."""
    folder = tmp_path_factory.mktemp("announced")
    announce(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setitem(registry.BUILT_IN, "lonely", "lonely:Lonely")  # this process has read its packages
        yield start(tensor_parallel_size=2)


@pytest.mark.parametrize("where", PLACES)
def test_an_error_on_one_worker_ends_its_request_alone(two, asked, where):
    """Requests beside it, whose workers gather in each layer, are answered as ever, and so are later ones."""
    sane = {"method": "lonely", "where": "nowhere"}
    others = {3: KNOCKOUT, 5: GIFT, 7: sane}
    sound = answers(two, asked, {**others, 0: sane, 9: sane})
    assert all(reason != "error" for reason, _ in sound)
    failing = {"method": "lonely", "where": where, "step": STEP}
    got = answers(two, asked, {**others, 0: failing, 9: failing})
    for number, (reason, tokens) in enumerate(got):
        if number in (0, 9):
            assert (reason, tokens) == ("error", sound[number][1][: 0 if where == "prepare" else STEP])
        else:
            assert (reason, tokens) == sound[number]
    assert got[3][1] == asked.by_transformers(KNOCKOUT)[3]
    assert got[5][1] == asked.by_transformers(GIFT)[5]
    assert answers(two, asked, {**others, 0: sane, 9: sane}) == sound
