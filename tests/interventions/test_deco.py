"""DeCo against the authors' outputs, and against corrections computed from the model's hidden states."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_choices,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    close_as_goldens_ask,
    golden,
    inputs_of,
    plain_logits,
)
from models import logits_of, picture, tiny_llama

import regaze
from regaze.errors import BadParameterError, InputError
from regaze.interventions.deco import DeCo
from regaze.interventions.vcd import VCD
from regaze.toolkit.model.logits import combine

LOGITS = torch.tensor([[[2.0, 1.5, 0.5, -1.0, -2.0]]])
LAYERS = torch.tensor([[0.0, 2.0, 1.0, 0.0, 0.0], [1.0, 1.5, 3.0, 0.0, 0.0]])[:, None, None]


def corrected(deco: DeCo, logits: torch.Tensor, layers: torch.Tensor) -> torch.Tensor:
    return combine(logits, [deco.correct(logits, layers)])


# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    """Fewer candidates: another anchor, and another token is the likeliest."""
    inf = torch.inf
    wide = corrected(DeCo(), LOGITS, LAYERS)[0, 0]
    torch.testing.assert_close(wide, torch.tensor([2.411511, 2.117267, 1.734535, -inf, -inf]))
    narrow = corrected(DeCo(top_p=0.6), LOGITS, LAYERS)[0, 0]
    torch.testing.assert_close(narrow, torch.tensor([2.0, 2.176481, -inf, -inf, -inf]))


def test_golden_contrast(shared):
    spec, tensors = golden(shared / "goldens", "deco", "contrast")
    for name, case in spec["cases"].items():
        params = case["params"]
        deco = DeCo(alpha=params["alpha"], top_p=params["top_p"], top_k=params["top_k"])
        for step, want in enumerate(tensors[f"{name}/out/scores"]):
            logits, layers = (tensors[f"{name}/in/{part}"][step] for part in ("logits", "early"))
            got = corrected(deco, logits[:, None], layers[:, :, None])[:, 0]
            close_as_goldens_ask(got, want, atol=5e-6)
            assert torch.equal(got.argmax(-1), tensors[f"{name}/out/next_tokens"][step])
    assert len(spec["cases"]) >= 4


def test_invariants():
    generator = torch.Generator().manual_seed(0)
    logits, layers = (torch.randn(*shape, 30, generator=generator) * 2 for shape in ((4, 2), (5, 4, 2)))
    deco = DeCo()
    want = corrected(deco, logits, layers)
    assert torch.equal(want.isfinite(), deco.candidates(logits))
    assert want.isfinite().gather(-1, logits.argmax(-1, keepdim=True)).all()
    torch.testing.assert_close(corrected(deco, logits + 3.0, layers), want + 3.0)
    shifted = corrected(deco, logits, layers + 2.0) - want
    finite = want.isfinite()
    low, high = shifted.masked_fill(~finite, torch.inf), shifted.masked_fill(~finite, -torch.inf)
    torch.testing.assert_close(low.amin(-1), high.amax(-1), rtol=0, atol=1e-5)
    assert torch.equal(corrected(DeCo(top_k=1), logits, layers).argmax(-1), logits.argmax(-1))
    cut = corrected(DeCo(alpha=0.0), logits, layers[:0])
    assert torch.equal(cut, logits.masked_fill(~finite, -torch.inf))
    for row in range(4):
        assert torch.equal(corrected(deco, logits[row, None], layers[:, row, None])[0], want[row])


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.5), (0, 1.0), (99, 1.0)])
def test_limits_of_the_candidates(top_k, top_p):
    chosen = DeCo(top_k=top_k, top_p=top_p).candidates(LOGITS)[0, 0]
    count = {(3, 1.0): 3, (0, 0.5): 1}.get((top_k, top_p), 5)
    assert chosen.tolist() == [True] * count + [False] * (5 - count)


# In a model -------------------------------------------------------------------------------------------


def manual(model, inputs, answer, deco, layers):
    """[T, B, V] corrections from the hidden states of plain forwards, row by row."""
    rows = []
    for step in range(answer.shape[1]):
        ids = torch.cat([inputs["input_ids"], answer[:, :step]], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(answer[:, :step])], 1)
        given = {**inputs, "input_ids": ids, "attention_mask": mask}
        given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            out = model(**given, output_hidden_states=True)
            norm = model.get_decoder().norm
            late = torch.stack([model.lm_head(norm(out.hidden_states[layer][:, -1])) for layer in layers])
        scores = torch.full_like(out.logits[:, -1], -torch.inf)
        for row, logits in enumerate(out.logits[:, -1]):
            order = logits.softmax(-1).argsort(descending=True)[: deco.top_k]
            total, chosen = 0.0, []
            for token in order.tolist():
                chosen.append(token)
                total += float(logits.softmax(-1)[token])
                if total >= deco.top_p:
                    break
            best = late[:, row].softmax(-1)[:, chosen].amax(-1)
            anchor = late[int(best.argmax()), row]
            scores[row, chosen] = (logits + deco.alpha * best.max() * anchor)[chosen]
        rows.append(scores)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("deco", "layers"),
    [(DeCo(layers=(2, 4)), (2, 3, 4)), (DeCo(alpha=1.5, top_k=4), (4,)), (DeCo(layers=(0, 5)), range(6))],
)
def test_every_step_equals_the_correction_by_hidden_states(model, gaze, deco, layers):
    inputs = inputs_of(gaze)
    with gaze.using(deco):
        got = logits_of(model, inputs, tokens=4)
    inputs = {name: value for name, value in inputs.items() if name != "position_ids"}
    assert_same_scores(got, manual(model, inputs, got.argmax(-1).T, deco, layers))


def test_text_models_without_roles():
    model, ids = tiny_llama(), torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs, deco = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, DeCo(layers=(1, 3))
    with regaze.wrap(model).using(deco):
        got = logits_of(model, inputs, tokens=3)
    assert_same_scores(got, manual(model, inputs, got.argmax(-1).T, deco, (1, 2, 3)))


def test_batches_padding_full_forward_and_json(gaze):
    deco = DeCo(layers=(2, 4))
    assert check_batch(gaze, deco).isinf().any()
    check_padding(gaze, deco)
    check_full_forward(gaze, deco)
    check_choices(gaze, deco)
    check_neutral(gaze, DeCo(alpha=0.0, top_k=0, top_p=1.0))
    check_json(DeCo(layers=(0, 3), alpha=0.5, top_k=3, top_p=0.4))


def test_without_a_weight_the_candidates_are_cut_alone(model, gaze):
    inputs = inputs_of(gaze)
    plain, cut = logits_of(model, inputs), DeCo(alpha=0.0)
    assert not cut.is_identity
    with gaze.using(cut):
        assert torch.equal(logits_of(model, inputs), plain.masked_fill(~cut.candidates(plain), -torch.inf))


def test_beside_a_branch_it_reads_the_users_rows(model, gaze):
    """Each method reads the plain logits; what they add is summed and their cuts intersect."""
    inputs, deco = gaze.inputs([picture(1)], ["What?"]), DeCo(layers=(2, 4))
    with gaze.using(deco):
        alone = logits_of(model, inputs, tokens=1)
    with gaze.using(VCD(alpha=1e-9, beta=0.0), deco):
        assert_same_scores(logits_of(model, inputs, tokens=1), alone)
    with gaze.using(VCD(beta=0.0)):
        contrast = logits_of(model, inputs, tokens=1)
    with gaze.using(VCD(beta=0.0), deco):
        both = logits_of(model, inputs, tokens=1)
    plain = plain_logits(model, inputs, both.argmax(-1).T)
    assert_same_scores(both, alone + contrast - plain)


def test_guidance_of_transformers_is_refused(model, gaze):
    inputs = inputs_of(gaze, slice(0, 1))
    with gaze.using(DeCo()), pytest.raises(InputError, match="guidance_scale"):
        model.generate(**inputs, max_new_tokens=2, guidance_scale=1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "alpha must be float >= 0, got -1"),
        ({"top_p": 0.0}, r"top_p must be float in \(0, 1\], got 0"),
        ({"top_k": -1}, "top_k must be int >= 0, got -1"),
        ({"layers": (4, 2)}, "the first layer comes after|layers must be"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        DeCo(**changes)


def test_layers_that_are_not_there(gaze):
    with (
        pytest.raises(BadParameterError, match=r"layers 2\.\.6 do not exist"),
        gaze.using(DeCo(layers=(2, 6))),
    ):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
