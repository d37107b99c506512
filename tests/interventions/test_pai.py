"""PAI against the authors' outputs, and what must never happen to it."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    answer_of,
    assert_same_scores,
    check_batch,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    close_as_goldens_ask,
    context_with,
    golden,
    golden_llama,
    inputs_of,
    plain_logits,
    span_roles,
    text_only,
)
from models import context_for, logits_of, picture, tiny_llama

import regaze
from regaze import VAR, HeadKnockout, Role
from regaze.errors import BadParameterError, CompositionError
from regaze.interventions.contrastive import WITHOUT_IMAGE
from regaze.interventions.pai import PAI
from regaze.kernels import attend
from regaze.toolkit.model.logits import combine

BOOST = {"alpha": 0.5, "gamma": 1.0}


def edits_of(pai: PAI, roles, layers: int = 32):
    """The edits of a middle layer at prefill and at decode."""
    context = context_for(roles, layers=layers)
    pai.prepare(context)
    return pai.edit(layers // 2, 0, context), pai.edit(layers // 2, 1, context)


def guided(pai: PAI, main, text):
    """Scores [B, V] that the guidance makes of logits [B, V] with and without the image."""
    context, reading = context_with(main, {WITHOUT_IMAGE: text}, pai)
    with reading:
        combination = pai.combine_logits(context)
        return (
            context.logits()[:, 0] if combination is None else combine(context.logits(), [combination])[:, 0]
        )


# The equations ----------------------------------------------------------------------------------------


def test_hand_example_of_the_boost():
    """Scores (1, -1, 0, .5), of which the first two are the image's."""
    _, decode = edits_of(PAI(alpha=0.5), [[Role.IMAGE, Role.IMAGE, Role.QUERY, Role.TAIL]])
    q, v = torch.ones(1, 1, 1, 1), torch.eye(4)[None, None]
    k = torch.tensor([1.0, -1.0, 0.0, 0.5]).view(1, 1, 4, 1)
    row = attend(q, k, v, decode, scaling=1.0)[0][0, 0, 0]
    torch.testing.assert_close(row, torch.tensor([0.579259, 0.078394, 0.129250, 0.213097]), rtol=0, atol=1e-6)


def test_hand_example_of_the_guidance():
    """Log-scores as far as they are given; a token that takes up the rest is cut as well."""
    main, text = torch.tensor([[-0.2, -2.0, -3.5]]), torch.tensor([[-1.0, -0.6, -3.0]])
    got = guided(PAI(gamma=1.1), main, text)
    want = 1.1 * main.log_softmax(-1) - 0.1 * text.log_softmax(-1)
    assert got[0].isinf().tolist() == [False, False, True]
    torch.testing.assert_close(got[0, :2], want[0, :2])
    assert float(got[0, 0] - got[0, 1]) == pytest.approx(-0.12 + 2.14, abs=1e-6)


def test_golden_score_boost(goldens):
    spec, tensors = golden(goldens, "pai", "score_boost")
    for name, case in spec["cases"].items():
        params = case["params"]
        q, k, v, mask = (tensors[f"{name}/in/{x}"] for x in ["q", "k", "v", "mask"])
        roles = torch.full((params["batch"], params["k_len"]), int(Role.QUERY))
        roles[:, params["image_start"] : params["image_end"]] = Role.IMAGE
        prefill, decode = edits_of(PAI(alpha=params["alpha"], gamma=1.0), roles)
        edit = prefill if q.shape[2] > 1 else decode
        out = attend(q, k, v, edit, mask=mask)[0].transpose(1, 2)
        # Rows that are masked altogether are averages in the release and zero here; nobody reads them.
        seen = (mask > torch.finfo(mask.dtype).min / 2).any(-1)[:, 0, :, None, None].expand_as(out)
        close_as_goldens_ask(out[seen], tensors[f"{name}/out/out_after"][seen])
    assert len(spec["cases"]) >= 3


def test_golden_guidance(goldens):
    spec, tensors = golden(goldens, "pai", "guidance")
    for name, case in spec["cases"].items():
        pai = PAI(gamma=float(case["params"]["gamma"]), beta=case["params"]["cut"])
        cond, uncond = (tensors[f"{name}/in/{x}_logits"] for x in ("cond", "uncond"))
        for step, want in enumerate(tensors[f"{name}/out/scores"]):
            got = guided(pai, cond[step], uncond[step])
            if pai.gamma == 1.0:  # the release returns log-probabilities, PAI leaves the logits alone
                got = got.log_softmax(-1)
            close_as_goldens_ask(got, want)
    assert len(spec["cases"]) >= 3


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("boost", {"gamma": 1.0}),
        ("guided", {"alpha": 0.0}),
        ("boost_guided", {}),
        ("as_released", {"as_released": True}),
    ],
)
def test_golden_end_to_end(goldens, tmp_path, kind, changes):
    model, (spec, tensors) = golden_llama(goldens, tmp_path), golden(goldens, "pai", "e2e")
    gaze = regaze.wrap(model)
    for name, case in spec["cases"].items():
        params, ids = case["params"], tensors[f"{name}/in/input_ids"]
        given = {key: params[key] for key in ("alpha", "gamma")} | {"beta": params["cut"]} | changes
        pai = PAI(layers=(params["layer_start"], params["layer_end"] - 1), **given)
        roles = span_roles(ids.shape[1], params["image_start"], params["image_end"])
        with gaze.using(pai, tokens=roles):
            got = logits_of(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[:, 0]
        close_as_goldens_ask(got, tensors[f"{name}/out/scores_{kind}"], atol=3e-4)
        assert torch.equal(got.argmax(-1), tensors[f"{name}/out/tokens_{kind}"])
    assert len(spec["cases"]) >= 2


# In a model -------------------------------------------------------------------------------------------


def test_guidance_equals_separate_forwards_without_the_image_tokens(model, gaze):
    inputs, pai = gaze.inputs([picture(1)], ["Is there a dog in the image?"]), PAI(alpha=0.0, gamma=1.8)
    answer, got = answer_of(gaze, inputs, pai)
    main, text = (plain_logits(model, each, answer) for each in (inputs, text_only(gaze, inputs)))
    want = 1.8 * main.log_softmax(-1) - 0.8 * text.log_softmax(-1)
    cut = main < main.amax(-1, keepdim=True) + torch.tensor(0.1).log()
    assert_same_scores(got, want.masked_fill(cut, -torch.inf))


def test_only_rows_that_predict_the_answer_are_edited_in_the_layers_named(gaze):
    """What a layer would do unedited beside what it does, in one and the same forward."""
    inputs, pai, runs = inputs_of(gaze, slice(0, 2)), PAI(**BOOST, layers=(1, 4)), []
    for edited in (False, True):
        with gaze.using(pai), gaze.recording(slices="all", rows="all", edited=edited) as record:
            gaze.model(**inputs)
        runs.append(record[0].slices)
    moved = (runs[0] - runs[1]).abs().amax((2, 4)) > 1e-6  # [layers, B, rows]
    assert moved[1:5, :, -1].all()
    assert int(moved.sum()) == 8
    pai = PAI()
    context = context_for([[Role.IMAGE, Role.QUERY]], layers=32)
    pai.prepare(context)
    assert [layer for layer in range(32) if pai.edit(layer, 1, context) is not None] == list(range(2, 32))


def test_as_released_leaves_the_first_token_unedited_under_guidance(gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    runs = {}
    for name, pai in (
        ("guided", PAI(alpha=0.0, gamma=1.5)),
        ("released", PAI(alpha=0.5, gamma=1.5, as_released=True)),
        ("paper", PAI(alpha=0.5, gamma=1.5)),
        ("boost", PAI(**BOOST)),
        ("released boost", PAI(**BOOST, as_released=True)),
    ):
        with gaze.using(pai):
            runs[name] = logits_of(gaze.model, inputs, tokens=3)
    assert torch.equal(runs["released"][0], runs["guided"][0])
    assert not torch.allclose(runs["released"][0], runs["paper"][0], atol=1e-3)
    assert torch.equal(runs["boost"], runs["released boost"])


@pytest.mark.parametrize("method", [PAI(**BOOST), PAI(alpha=0.5, gamma=2.0, as_released=True), PAI()])
def test_batches_and_prompts_without_an_image(gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(gaze.model, inputs_of(gaze))
    assert_same_scores(together[:, 2], plain[:, 2])
    for row in range(2):
        kept = ~together[0, row].isinf()
        assert not torch.allclose(together[0, row][kept], plain[0, row][kept], atol=1e-3)


def test_neutral_strength_padding_full_forward_and_json(gaze):
    check_neutral(gaze, PAI(alpha=0.0, gamma=1.0), PAI(alpha=0.0, gamma=1.0, as_released=True))
    for pai in (PAI(**BOOST), PAI(alpha=0.5, gamma=1.5)):
        check_padding(gaze, pai)
        check_full_forward(gaze, pai)
    check_json(PAI(layers=(1, 3), as_released=True))


def test_grouped_heads_equal_repeated_ones():
    grouped = tiny_llama(layers=4, num_key_value_heads=2)
    plain = tiny_llama(num_key_value_heads=6)
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = weight.view(2, -1, weight.shape[1]).repeat_interleave(3, 0).flatten(0, 1)
    plain.load_state_dict(weights)
    ids, roles = torch.randint(5, 200, (1, 14)), span_roles(14, 2, 9)
    runs = []
    for model in (grouped, plain):
        with regaze.wrap(model).using(PAI(alpha=0.5, gamma=1.3), tokens=roles):
            runs.append(logits_of(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    assert_same_scores(*runs)


def test_compositions(gaze):
    """A removed head stays removed; two row selections on one layer have no common meaning."""
    inputs = inputs_of(gaze, slice(0, 1))
    with gaze.using(PAI(**BOOST), HeadKnockout(heads=((3, 1), (4, 0)))):
        logits_of(gaze.model, inputs)
    with (
        pytest.raises(CompositionError, match="different query rows"),
        gaze.using(PAI(**BOOST), VAR(sink_dimensions=(3, 7), tau=1.6)),
    ):
        logits_of(gaze.model, inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -0.1}, "alpha must be float >= 0, got -0.1"),
        ({"gamma": 0.5}, "gamma must be float >= 1, got 0.5.*1: none"),
        ({"beta": -1.0}, r"in \[0, 1\], got -1"),
        ({"layers": (5, 2)}, "layers must be the first and the last layer"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        PAI(**changes)


def test_layers_that_the_model_does_not_have(gaze):
    with (
        pytest.raises(BadParameterError, match=r"the model has layers 0\.\.5"),
        gaze.using(PAI(layers=(2, 31))),
    ):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
