"""CAI against the authors' outputs, and against a model that the test edits in its own words."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from decoding_checks import (
    answer_of,
    assert_same_scores,
    check_batch,
    check_choices,
    check_json,
    check_layers,
    check_neutral,
    check_padding,
    check_shared_keys,
    check_spares_text,
    close_as_goldens_ask,
    golden,
    inputs_of,
    plain_logits,
    text_only,
)
from models import context_for, logits_of, picture
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.errors import BadParameterError
from regaze.interventions.cai import CAI, digits, relevance
from regaze.interventions.controls import PlausibilityCut, UniformColumns
from regaze.kernels import AttentionEdit, RowSelection, attend

#: Edits three layers of a random model in every step; without guidance.
BOOST = CAI(threshold=-1.0, gamma=1.0, layers=(2, 4))


# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    text = torch.tensor([[0.0, 5.0]])
    cosines = torch.tensor([0.10, 0.12, 0.09])
    image = torch.stack([(1 - cosines**2).sqrt(), cosines], -1)[None]
    weights = relevance(image, text, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.tensor([[0.731059, 0.952574, 0.5]]), rtol=0, atol=2e-6)
    edit = AttentionEdit(score_slope=F.pad(weights, (1, 0))[:, None])
    key = torch.tensor([0.0, 2.0, -1.0, 0.5]).view(1, 1, 4, 1)
    row = attend(torch.ones(1, 1, 1, 1), key, torch.eye(4)[None, None], edit, scaling=1.0)[0][0, 0, 0]
    want = torch.tensor([0.027813, 0.886784, 0.026524, 0.058879])
    torch.testing.assert_close(row, want, rtol=0, atol=2e-6)
    for share, entropy in ((0.9, 0.141182), (0.98, 0.042578)):
        assert float(digits(torch.tensor([share, 1 - share]).log())) == pytest.approx(entropy, abs=1e-6)


def test_golden_boost(shared):
    spec, tensors = golden(shared / "goldens", "cai", "boost")
    for name, case in spec["cases"].items():
        params = case["params"]
        q, k, v, mask, weights = (tensors[f"{name}/in/{part}"] for part in ("q", "k", "v", "mask", "weights"))
        last = RowSelection(torch.tensor([params["q_len"] - 1]))
        slope = F.pad(weights, (params["image_start"], 0))[None, None]
        out, _ = attend(q, k, v, AttentionEdit(rows=last, score_slope=slope), mask=mask)
        close_as_goldens_ask(out.transpose(1, 2), tensors[f"{name}/out/out_after"])
    assert len(spec["cases"]) >= 2


def test_golden_gate(shared):
    """The method itself, on a context with the recorded residual streams."""
    spec, tensors = golden(shared / "goldens", "cai", "gate")
    for name, case in spec["cases"].items():
        params = case["params"]
        given = {key.rpartition("/")[2]: value for key, value in tensors.items() if f"{name}/in" in key}
        text = given["embeddings"][:, params["query_start"] :] if params["q_len"] > 1 else given["embeddings"]
        image = F.normalize(given["image_features"], dim=-1)[None]
        weights = relevance(image, text.mean(1), torch.ones(image.shape[:2], dtype=torch.bool))
        torch.testing.assert_close(weights[0], tensors[f"{name}/out/weights"], rtol=0, atol=1e-5)
        last = given["layer_outputs"][:, -1]
        last = last * torch.rsqrt(last.square().mean(-1, keepdim=True) + params["rms_eps"]) * given["norm"]
        entropy = digits(last @ given["head"].mT)
        torch.testing.assert_close(entropy, tensors[f"{name}/out/entropy"], rtol=0, atol=3e-6)
        gates = (entropy > params["threshold"]).long()
        gates[: params["start_layer"]] = 0
        assert torch.equal(F.pad(gates[:-1], (1, 0)), tensors[f"{name}/out/steered"])
    assert len(spec["cases"]) >= 2


def test_only_differences_of_similarities_count():
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(1, 7, 8, generator=generator), dim=-1)
    text = torch.randn(1, 8, generator=generator)
    present = torch.tensor([[False, True, True, True] + [False] * 3])
    weights = relevance(image, text, present)
    assert float(weights[present].min()) == 0.5
    assert weights[~present].eq(0.0).all()
    torch.testing.assert_close(relevance(image, 7 * text, present), weights)
    torch.testing.assert_close(relevance(image[:, 1:4], text, present[:, 1:4]), weights[:, 1:4])


# In a model -------------------------------------------------------------------------------------------


class Written:
    """A model whose scores the test tilts itself, in eager attention, for one prompt."""

    def __init__(self, model, method: CAI, inputs):
        self.model, self.method, self.inputs, self.on = model, method, inputs, []
        self.text = model.model.language_model
        self.columns = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()

    def enter(self, number):
        def hook(module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            if number == 0:
                text = hidden[0]
                if len(text) > 1:
                    self.image = F.normalize(text[self.columns], dim=-1)
                    text = text[int(self.columns[-1]) + 1 :]
                cosine = self.image @ F.normalize(text.mean(0), dim=-1)
                self.weights = torch.sigmoid(100 * (cosine - cosine.min()))
            p = self.model.lm_head(self.text.norm(hidden[0, -1])).softmax(-1)
            self.entropy = float(-(p * (p + 1e-9).log()).sum() / math.log(10))

        return hook

    def attention(self, module, query, key, value, mask, **kwargs):
        groups, rows, length = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        scores = query @ key.mT * kwargs["scaling"]
        first, last = self.method.layers
        if first <= module.layer_idx <= last:
            self.on.append(self.entropy > self.method.threshold)
            if self.on[-1]:
                part = scores[:, :, -1, self.columns]
                scores[:, :, -1, self.columns] = part + self.method.alpha * self.weights * part.abs()
        hidden = torch.ones(rows, length).triu(1 + length - rows).bool()
        return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2), None

    def logits(self, steps):
        """[T, 1, V] of a greedy answer."""
        config, layers = self.text.config, self.text.layers
        before = config._attn_implementation
        hooks = [
            layer.register_forward_pre_hook(self.enter(n), with_kwargs=True) for n, layer in enumerate(layers)
        ]
        ALL_ATTENTION_FUNCTIONS["written_out"] = self.attention
        config._attn_implementation = "written_out"
        try:
            return logits_of(self.model, self.inputs, steps)
        finally:
            config._attn_implementation = before
            del ALL_ATTENTION_FUNCTIONS["written_out"]
            for hook in hooks:
                hook.remove()


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(
    "method", [BOOST, CAI(threshold=2.81, gamma=1.0, layers=(1, 5)), CAI(alpha=0.3, gamma=1.0, layers=(5, 5))]
)
def test_every_step_is_that_of_scores_tilted_by_hand(model, gaze, method, images):
    inputs = gaze.inputs([[picture(n) for n in range(images)]], ["Is there a dog in the image?"])
    written = Written(model, method, inputs)
    want = written.logits(4)
    with gaze.using(method):
        got = logits_of(model, inputs, 4)
    assert_same_scores(got, want, tolerance=5e-4)
    assert any(written.on)
    assert not torch.allclose(got, logits_of(model, inputs, 4), atol=1e-3)


def test_the_threshold_divides_layers_and_steps(model, gaze):
    """The case above whose gates are open in some layers or steps only."""
    method = CAI(threshold=2.81, gamma=1.0, layers=(1, 5))
    written = Written(model, method, gaze.inputs([picture(0)], ["Is there a dog in the image?"]))
    written.logits(4)
    assert {*written.on} == {True, False}


def test_guidance_away_from_an_unedited_text_only_prompt(model, gaze):
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    method = CAI(threshold=-1.0, layers=(2, 4), beta=0.2)
    answer, got = answer_of(gaze, inputs, method)
    with gaze.using(BOOST):
        main = logits_of(model, inputs, 1)
    text = plain_logits(model, text_only(gaze, inputs), answer[:, :1])
    main, text = main.log_softmax(-1), text.log_softmax(-1)
    want = 3.0 * (main - text) + text
    want = want.masked_fill(main < main.amax(-1, keepdim=True) + math.log(0.2), -torch.inf)
    assert_same_scores(got[:1], want, tolerance=1e-3)


@pytest.mark.parametrize(("depth", "edited"), [(32, (28, 31)), (40, (35, 39)), (6, (5, 5))])
def test_by_default_the_layers_are_those_behind_28_lenses(depth, edited):
    context, method = context_for([[1, 3, 3, 5]], layers=depth), CAI()
    method.prepare(context)
    assert context.state(method)["layers"] == edited


def test_it_acts_in_its_layers_and_the_last_row(gaze):
    check_layers(gaze, BOOST, {2, 3, 4}, "last")


def test_batches_padding_shared_keys_choices_neutral_and_json(gaze):
    check_spares_text(gaze, BOOST)
    check_batch(gaze, CAI(layers=(3, 5)))
    check_padding(gaze, BOOST)
    check_shared_keys(BOOST)
    check_choices(gaze, BOOST)
    check_neutral(gaze, CAI(alpha=0.0, gamma=1.0))
    check_json(CAI(alpha=0.5, threshold=-0.5, layers=(1, 2)))


def test_a_threshold_that_no_layer_reaches_changes_nothing(model, gaze):
    """The largest entropy is that of the whole vocabulary."""
    inputs = inputs_of(gaze)
    threshold = math.log10(model.config.text_config.vocab_size)
    with gaze.using(CAI(threshold=threshold, gamma=1.0, layers=(0, 5))):
        got = logits_of(model, inputs)
    torch.testing.assert_close(got, logits_of(model, inputs), rtol=0, atol=1e-5)


def test_controls():
    assert CAI().controls() == (UniformColumns(CAI()), PlausibilityCut(0.1))
    assert BOOST.controls() == (UniformColumns(BOOST),)
    assert CAI(alpha=0.0).controls() == (PlausibilityCut(0.1),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "alpha must be float >= 0"),
        ({"gamma": 0.5}, "gamma must be float >= 1"),
        ({"threshold": math.inf}, "threshold must be float, got inf"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        CAI(**changes)
