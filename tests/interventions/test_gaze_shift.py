"""The map of gaze shifts from a record, against the paper's hand example and against what GIFT measures."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from models import picture

from regaze import Role, TokenMap
from regaze.errors import BadParameterError, RecordingError
from regaze.interventions.common.ranking import saliency_map
from regaze.interventions.gift.gaze_shift import RowShifts, mean_shift
from regaze.interventions.gift.method import GIFT
from regaze.interventions.gift.shift_map import gaze_shift_map
from regaze.toolkit.analysis.forward import run_forward
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.prompts.token_map import View
from regaze.toolkit.record.trace import Trace

QUESTIONS = ["Is there a dog in the image?", "What?"]


def _gridded(roles, grid):
    """A map of roles whose image tokens fill one grid."""
    image = torch.where(roles == Role.IMAGE, 0, -1).int()
    cell = torch.where(roles == Role.IMAGE, torch.arange(roles.shape[1]), -1).int()
    return TokenMap(roles.to(torch.uint8), image, cell, ((View(grid),),))


def test_map_by_hand():
    """GIFT's example: three rows over three image tokens, two of them of words, give (1, 0, .5)."""
    rows = torch.tensor([[0.1, 0.2, 0.1], [0.1, 0.3, 0.05], [0.3, 0.3, 0.2]])
    roles = torch.tensor([[Role.IMAGE] * 3 + [Role.SEPARATOR, Role.QUERY, Role.QUERY]])
    trace = Trace(
        layers=(0,),
        row_position=torch.tensor([3, 4, 5]),
        row_active=torch.ones(1, 3, dtype=torch.bool),
        slices=rows[None, None, None],
        row_step=torch.zeros(3, dtype=torch.int64),
        slice_columns=torch.tensor([[0, 1, 2]]),
        tokens=_gridded(roles, (1, 3)),
        text=(("", "", "", "\n", " red", " dog"),),
    )
    torch.testing.assert_close(gaze_shift_map(trace), torch.tensor([[1.0, 0.0, 0.5]]))
    dog = gaze_shift_map(trace, words=["Dog"])
    torch.testing.assert_close(dog, torch.tensor([[1.0, 0.0, 0.75]]))  # (.2, 0, .15)
    with pytest.raises(BadParameterError, match=r"\['cat'\] are not in the question"):
        gaze_shift_map(trace, words=["cat"])
    with pytest.raises(RecordingError, match='rows="all"'):
        gaze_shift_map(dataclasses.replace(trace, row_position=torch.tensor([2, 3, 5])))


@pytest.fixture(scope="module")
def record(gaze):
    with gaze.recording(slices="image", rows="all") as record:
        gaze.ask([picture(1), picture(2)], QUESTIONS, max_new_tokens=3, eos_token_id=None)
    return record


def test_the_map_is_the_saliency_of_gift(gaze, record):
    """Of a whole prompt, with the words and heads that GIFT takes in its saliency layer."""
    seen = {}
    method = GIFT(saliency_layer=2, layers=(3, 4))

    class Meter(Callback):
        def prepare(self, context):
            seen["shifts"] = RowShifts.of(method.content_tokens(context), context.tokens.mask(Role.IMAGE))

        def edit(self, layer, step, context):
            return seen["shifts"].request.as_edit if layer == 2 and step == 0 else None

        def on_stats(self, layer, stats, context):
            shifts = seen["shifts"]
            mean = mean_shift(shifts.positive(stats.slices), shifts.counts, 3)[0]
            seen["map"] = saliency_map(mean, shifts.index >= 0)

    with gaze.using(Meter()), torch.no_grad():
        run_forward(gaze, gaze.inputs([picture(1), picture(2)], QUESTIONS))
    for sample in range(2):
        found = gaze_shift_map(record, layers=[2], sample=sample)
        torch.testing.assert_close(found.flatten(), seen["map"][sample], rtol=1e-3, atol=1e-4)
