"""DoLa against the authors' outputs, and against contrasts computed from the model's hidden states."""

from __future__ import annotations

import pytest
import torch
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_full_forward,
    check_json,
    check_neutral,
    check_padding,
    close_as_goldens_ask,
    golden,
    inputs_of,
)
from models import llava_processor, logits_of, picture, tiny_llama

import regaze
from regaze.errors import BadParameterError, InputError
from regaze.interventions.dola import DoLa, candidates
from regaze.interventions.vcd import VCD
from regaze.toolkit.model.logits import combine


def of_case(params) -> DoLa:
    layers = params["candidates"] or (params["static_premature"],)
    return DoLa(layers=tuple(layers), beta=params["relative_top"])


def layer_scores(dola: DoLa, logits: torch.Tensor, layers) -> torch.Tensor:
    """Scores of logits [layers + 1, B, V], the last being the final ones, as the model would get them."""
    final, early = logits[-1][:, None], [logits[layer][:, None] for layer in layers]
    return combine(final, [dola.contrast(final, early)])[:, 0]


# The equations ----------------------------------------------------------------------------------------


def test_hand_example_of_the_divergences():
    p, q = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.5, 0.3]).log()
    assert float(DoLa().divergence(p, q)) == pytest.approx(0.132918, abs=1e-6)
    assert float(DoLa(as_released=True).divergence(p, q)) == pytest.approx(0.147330, abs=1e-6)
    assert float(DoLa().divergence(p, p)) == pytest.approx(0.0, abs=1e-7)


def test_golden_contrast(goldens):
    """In the case of the swapped divergence the paper's layer is another one, and so are the scores."""
    spec, tensors = golden(goldens, "dola", "contrast")
    for name, case in spec["cases"].items():
        params = case["params"]
        dola, layers = of_case(params), params["candidates"] or (params["static_premature"],)
        released = DoLa.from_dict({**dola.to_dict(), "as_released": True})
        for step, logits in enumerate(tensors[f"{name}/in/logits"]):
            if case["kind"] == "paper" or name == "as_released_swapped_kl":
                wanted, matters = tensors[f"{name}/out/scores"][step], released
                close_as_goldens_ask(layer_scores(matters, logits, layers), wanted, atol=5e-6)
            if case["kind"] == "paper":
                close_as_goldens_ask(layer_scores(dola, logits, layers), wanted, atol=5e-6)
            if f"{name}/out/js_true" not in tensors:
                continue
            final = logits[-1].log_softmax(-1)
            for number, layer in enumerate(layers):
                early = logits[layer].log_softmax(-1)
                for method, kind, scale in (
                    (dola, "js_true", 1),
                    (released, "code_divergence", params["vocab"]),
                ):
                    want = tensors[f"{name}/out/{kind}"][step, number] * scale
                    close_as_goldens_ask(method.divergence(final, early), want, atol=5e-6)
    swapped = tensors["as_released_swapped_kl/in/logits"][0]
    params = spec["cases"]["as_released_swapped_kl"]["params"]
    scores = layer_scores(of_case(params), swapped, params["candidates"])
    wanted = tensors["as_released_swapped_kl/out/scores"][0]
    assert not torch.allclose(scores.nan_to_num(neginf=0), wanted.nan_to_num(neginf=0), atol=1e-2)
    assert len(spec["cases"]) >= 4


def test_golden_sequence_score(goldens):
    spec, tensors = golden(goldens, "dola", "sequence_score")
    for name, case in spec["cases"].items():
        params, logits, ids = case["params"], tensors[f"{name}/in/logits"], tensors[f"{name}/in/ids"]
        rows = slice(params["prefix"] - 1, -1)  # each row predicts the next token
        early = [logits[layer, rows][None] for layer in params["candidates"]]
        dola = DoLa(beta=params["relative_top"])
        got = dola.sequence_score(logits[-1, rows][None], early, ids[None, params["prefix"] :])
        torch.testing.assert_close(
            got.double(), tensors[f"{name}/out/log_prob_sum"][None], rtol=1e-5, atol=1e-3
        )


def test_every_row_chooses_its_own_layer():
    torch.manual_seed(0)
    logits = torch.randn(7, 5, 23) * 3
    dola = DoLa(beta=0.0)
    together = layer_scores(dola, logits, (0, 2, 4))
    final, early = logits[-1].log_softmax(-1), logits.log_softmax(-1)
    divergences = torch.stack([dola.divergence(final, early[layer]) for layer in (0, 2, 4)])
    assert len(divergences.argmax(0).unique()) > 1
    for row in range(5):
        layer = (0, 2, 4)[int(divergences[:, row].argmax())]
        torch.testing.assert_close(together[row], final[row] - early[layer, row], rtol=0, atol=1e-5)
        alone = layer_scores(dola, logits[:, row : row + 1], (0, 2, 4))
        torch.testing.assert_close(together[row], alone[0])


def test_candidates_of_any_depth():
    assert candidates(32, "low", False) == tuple(range(0, 16, 2))
    assert candidates(32, "high", False) == tuple(range(16, 32, 2))
    assert candidates(80, "low", False) == tuple(range(0, 20, 2))
    assert candidates(80, "high", True) == tuple(range(60, 80, 2))
    assert candidates(30, "low", True) == tuple(range(2, 15, 2))
    for depth in range(1, 9):
        for bucket in ("low", "high"):
            for tied in (False, True):
                layers = candidates(depth, bucket, tied)
                assert layers
                assert all(0 <= layer < depth for layer in layers)
                assert not (tied and depth > 1 and layers[0] == 0)


# In a model -------------------------------------------------------------------------------------------


def manual(model, inputs, answer, layers, norm):
    """[T, B, V] contrast from the hidden states of plain forwards, with the layer of largest divergence."""
    rows = []
    for step in range(answer.shape[1]):
        ids = torch.cat([inputs["input_ids"], answer[:, :step]], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(answer[:, :step])], 1)
        given = {**inputs, "input_ids": ids, "attention_mask": mask}
        given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            out = model(**given, output_hidden_states=True)
            final = out.logits[:, -1].log_softmax(-1)
            hidden = [out.hidden_states[layer][:, -1] for layer in layers]
            hidden = [model.get_decoder().norm(h) for h in hidden] if norm else hidden
            early = torch.stack([model.lm_head(h).log_softmax(-1) for h in hidden])
        middle = 0.5 * (final.exp() + early.exp())
        terms = final.exp() * (final - middle.log()) + early.exp() * (early - middle.log())
        best = terms.sum(-1).argmax(0)
        scores = final - early[best, torch.arange(len(best))]
        cut = final < final.amax(-1, keepdim=True) + torch.tensor(0.1).log()
        rows.append(scores.masked_fill(cut, -torch.inf))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("dola", "layers"),
    [(DoLa(), (0, 2)), (DoLa(bucket="high", norm=True), (3, 5)), (DoLa(layers=(1,)), (1,))],
)
def test_every_step_equals_the_contrast_of_hidden_states(model, gaze, dola, layers):
    inputs = inputs_of(gaze)
    with gaze.using(dola):
        got = logits_of(model, inputs, tokens=4)
    inputs = {name: value for name, value in inputs.items() if name != "position_ids"}
    assert_same_scores(got, manual(model, inputs, got.argmax(-1).T, layers, dola.norm))


@pytest.mark.parametrize("tied", [False, True])
def test_text_models_without_roles_and_tied_embeddings(tied):
    model = tiny_llama(tie_word_embeddings=tied)
    gaze, ids = regaze.wrap(model), torch.randint(5, 200, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with gaze.using(DoLa()):
        got = logits_of(model, inputs, tokens=3)
    layers = (1,) if tied else (0,)
    assert_same_scores(got, manual(model, inputs, got.argmax(-1).T, layers, False))
    with regaze.wrap(model, llava_processor().tokenizer).using(DoLa()):
        assert torch.equal(got, logits_of(model, inputs, tokens=3))


@pytest.mark.parametrize("method", [DoLa(), DoLa(bucket="high", as_released=True)])
def test_batches(gaze, method):
    together = check_batch(gaze, method)
    assert together.isinf().any()


def test_neutral_strength_padding_full_forward_and_json(gaze):
    check_neutral(gaze, DoLa(weight=0.0))
    check_padding(gaze, DoLa())
    check_full_forward(gaze, DoLa())
    check_json(DoLa(layers=(0, 3), bucket="high", norm=True))


def test_labels_are_refused_since_their_loss_is_that_of_other_logits(model, gaze):
    inputs = gaze.inputs([picture(1)], ["What is there?"])
    with gaze.using(DoLa()):
        with pytest.raises(InputError, match="the loss of `labels` is that of the model without"):
            model(**inputs, labels=inputs["input_ids"])
        assert model(**inputs).logits.isfinite().any()


def test_beside_a_branch_it_reads_the_users_rows(gaze):
    inputs = inputs_of(gaze, slice(0, 2))
    with gaze.using(DoLa(beta=0.0)):
        alone = logits_of(gaze.model, inputs, tokens=1)
    with gaze.using(VCD(alpha=1e-9, beta=0.0), DoLa(beta=0.0)):
        beside = logits_of(gaze.model, inputs, tokens=1)
    assert_same_scores(beside, alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bucket": "middle"}, "bucket must be 'low' or 'high', got 'middle'"),
        ({"layers": ()}, "layers must be layer numbers from 0"),
        ({"layers": (-1,)}, "layers must be layer numbers from 0"),
        ({"layers": ("a",)}, "layers must be layer numbers from 0"),
        ({"weight": -1.0}, "weight must be float >= 0, got -1"),
        ({"beta": 1.1}, r"in \[0, 1\], got 1.1"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        DoLa(**changes)


def test_layers_that_are_not_early(gaze):
    with (
        pytest.raises(BadParameterError, match=r"layer 6 is no early layer"),
        gaze.using(DoLa(layers=(0, 6))),
    ):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
