"""AttnReal: the rule by hand, which tokens are sinks, and its promises in a model."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    check_shared_keys,
    check_spares_text,
    inputs_of,
)
from models import context_for, logits_of

from regaze.errors import BadParameterError, CompositionError
from regaze.interventions import AttnReal, HeadKnockout
from regaze.kernels import AttentionEdit, StatsRequest, attend
from regaze.toolkit.prompts.token_map import Role

ACTS = AttnReal(rho=0.1, above=1.0)
#: Of the spec's hand example: SYS, image, question, answer.
ROLES = [Role.SYSTEM, Role.IMAGE, Role.IMAGE, Role.QUERY, Role.OUTPUT, Role.OUTPUT, Role.OUTPUT]
WEIGHTS = torch.tensor([[0.20, 0.10, 0.05, 0.15, 0.30, 0.12, 0.08]])


def after(method: AttnReal, weights, roles=ROLES, prompt: int = 4):
    """A last row of weights [H, n] as a decode step after the first `prompt` tokens leaves it."""
    context = context_for(torch.tensor([[int(role) for role in roles[:prompt]]]), layers=32)
    method.prepare(context)
    context.step, context.cache_length, context.fed = 3, len(roles) - 1, 1
    edit = method.edit(20, 3, context)
    keys = torch.eye(weights.shape[1]).expand(1, len(weights), -1, -1)
    query = weights.log().clamp_min(-200.0)[None, :, None] * weights.shape[1] ** 0.5
    edit = AttentionEdit() if edit is None else edit
    request = StatsRequest(full_rows=True, edited=True)
    out, stats = attend(query, keys, keys, edit.replace(stats=request))
    torch.testing.assert_close(stats.slices[0, :, 0], out[0, :, 0])
    return out[0, :, 0]


# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    """The first output token is the sink: 0.18 is freed, the image's weights grow by 2.2."""
    want = torch.tensor([[0.20, 0.22, 0.11, 0.15, 0.12, 0.12, 0.08]])
    for method in (AttnReal(rho=0.4, sinks=(0,)), AttnReal(rho=0.4, above=1.5)):
        torch.testing.assert_close(after(method, WEIGHTS), want, rtol=0, atol=1e-6)


def test_bias_route():
    """The same by adding log rho and log(1 + m / M_V) to the scores."""
    rho, sink, image = 0.3, [4, 5], [1, 2]
    freed = (1 - rho) * WEIGHTS[0, sink].sum()
    bias = torch.zeros(1, 1, 7)
    bias[..., sink] = torch.tensor(rho).log()
    bias[..., image] = (1 + freed / WEIGHTS[0, image].sum()).log()
    got = after(AttnReal(rho=rho, sinks=(0, 1)), WEIGHTS)
    torch.testing.assert_close(got, (WEIGHTS.log() + bias[0]).softmax(-1))


def test_the_threshold_is_a_multiple_of_the_mean_of_visible_keys_in_each_head():
    """Seven visible keys: 0.30 is 2.1 times their mean, and nothing else of the answer is above."""
    spread = WEIGHTS[:, [0, 1, 2, 3, 6, 5, 4]]
    rows = torch.cat([WEIGHTS, spread, torch.full((1, 7), 1 / 7)])
    got = after(AttnReal(rho=0.4, above=2.0), rows)
    assert ((got - rows).abs() > 1e-6).any(1).tolist() == [True, True, False]
    assert got[1, 6].item() == pytest.approx(0.12)
    torch.testing.assert_close(after(AttnReal(rho=0.4, above=2.11), rows), rows)
    hidden = torch.cat([WEIGHTS, torch.zeros(1, 7)], 1)  # seven more keys that the row does not see
    roles = [*ROLES, *[Role.OUTPUT] * 7]
    torch.testing.assert_close(after(AttnReal(rho=0.4, above=2.11), hidden, roles), hidden)


def test_no_sinks_no_image_and_a_prompt_of_the_system_alone():
    torch.testing.assert_close(after(AttnReal(rho=0.0, above=3.0), WEIGHTS), WEIGHTS)
    blind = WEIGHTS.clone()
    blind[:, 1:3] = 0.0
    blind /= blind.sum()
    torch.testing.assert_close(after(AttnReal(rho=0.0, sinks=(0,)), blind), blind)
    torch.testing.assert_close(after(AttnReal(rho=0.0, sinks=(9,)), WEIGHTS), WEIGHTS)


def test_listed_sinks_of_an_answer_that_begins_in_the_prompt():
    got = after(AttnReal(rho=0.4, sinks=(0,)), WEIGHTS, prompt=6)
    torch.testing.assert_close(got, after(AttnReal(rho=0.4, sinks=(0,)), WEIGHTS))


# In a model -------------------------------------------------------------------------------------------


def test_batches_padding_full_forward_choices_and_json(gaze):
    for method in (ACTS, AttnReal(rho=0.0, sinks=(0, 2), layers=(0, 5))):
        check_full_forward(gaze, method)
        check_choices(gaze, method)
    check_spares_text(gaze, ACTS)
    check_padding(gaze, ACTS)
    check_shared_keys(AttnReal(rho=0.0, above=0.5, layers=(0, 4)))
    check_neutral(gaze, AttnReal(rho=1.0), AttnReal(rho=1.0, sinks=(1,)))
    check_json(AttnReal(rho=0.3, sinks=(0, 1), layers=(1, 2)))


def test_only_the_answer_is_edited(gaze):
    """The prompt's logits are plain; in layers of the range, mass goes from the answer to the image."""
    inputs = inputs_of(gaze, slice(0, 1))
    method = AttnReal(rho=0.0, above=0.5, layers=(4, 5))
    plain = logits_of(gaze.model, inputs, 4)
    with gaze.using(method):
        edited = logits_of(gaze.model, inputs, 4)
    assert torch.equal(plain[0], edited[0])
    assert not torch.allclose(plain[2], edited[2], atol=1e-3)
    masses = []
    for after_edit in (False, True):
        with gaze.using(method), gaze.recording(edited=after_edit) as record:
            gaze.model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
        masses.append(record[0].masses[:, 0, :, 1:])
    change = masses[1] - masses[0]  # [layers, heads, rows, roles]
    assert not change[:4].abs().gt(1e-6).any()
    assert (change[4:, ..., int(Role.IMAGE)].mean(1) > 0.01).all()
    assert (change[4:, ..., int(Role.OUTPUT)].mean(1) < -0.01).all()
    assert change[4:, ..., [int(Role.SYSTEM), int(Role.QUERY), int(Role.TAIL)]].abs().max() < 1e-5


def test_with_others(gaze):
    inputs = inputs_of(gaze, slice(0, 2))
    with gaze.using(ACTS, HeadKnockout(heads=((4, 1),))):
        assert not logits_of(gaze.model, inputs).isnan().any()
    with gaze.using(ACTS, AttnReal()), pytest.raises(CompositionError, match="policy"):
        logits_of(gaze.model, inputs)


@pytest.mark.parametrize("changes", [{"rho": 1.5}, {"above": -1.0}, {"sinks": ()}, {"sinks": (-1,)}])
def test_bad_parameters(changes):
    with pytest.raises(BadParameterError, match=next(iter(changes))):
        AttnReal(**changes)
