"""MemVR against the authors' outputs, and against a model that the test edits by hooks of its own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from decoding_checks import (
    assert_same_scores,
    check_batch,
    check_choices,
    check_json,
    check_neutral,
    check_padding,
    check_shared_keys,
    golden,
    inputs_of,
)
from models import context_for, logits_of, picture, tiny_llava

from regaze.errors import BadParameterError
from regaze.interventions.memvr import MemVR, retrieve, uncertainty

#: Edits something in most forwards of a random model.
ACTING = MemVR(ratio=0.6, threshold=0.3, layers=(1, 4))


# The equations ----------------------------------------------------------------------------------------


def test_hand_example():
    x, z, plain = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 0], [0, 1], [1, 1]]]), [[[0.5, -1.0]]]
    mixed = retrieve(x, torch.tensor(plain), z, 0.12)
    torch.testing.assert_close(mixed[0, 0], torch.tensor([0.52, -0.78]))
    logits = torch.tensor([2, 1.5, 1, 0.5, 0, 0, 0, 0, -1, -2, -9, -9])
    assert float(uncertainty(logits)) == pytest.approx(0.805819, abs=1e-6)
    logits[0] = 6
    assert float(uncertainty(logits)) == pytest.approx(0.087587, abs=1e-6)
    assert float(uncertainty(torch.zeros(50))) == pytest.approx(1.0)


def test_golden_retrieve(shared):
    """The case of a batch takes all of it for one sample, as the release does; here samples are separate."""
    spec, tensors = golden(shared / "goldens", "memvr", "retrieve")
    for name, case in spec["cases"].items():
        parts = [tensors[f"{name}/in/{part}"] for part in ("hidden", "mlp")]
        visual, ratio = tensors[f"{name}/in/visual"][None], case["params"]["ratio"]
        as_one = [part.flatten(0, 1)[None] for part in parts]
        want = tensors[f"{name}/out/output"]
        got = retrieve(*as_one, visual, ratio).view_as(want)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        rows = retrieve(*parts, visual.expand(len(parts[0]), -1, -1), ratio, scale="row")
        torch.testing.assert_close(rows, tensors[f"{name}/out/output_per_row"], rtol=1e-4, atol=1e-5)
    assert len(spec["cases"]) >= 3


def test_golden_stack(shared):
    """Which layer is edited, and all hidden states, in stacks of layers without attention."""
    spec, tensors = golden(shared / "goldens", "memvr", "stack")
    for name, case in spec["cases"].items():
        params = case["params"]
        given = {key.rpartition("/")[2]: value for key, value in tensors.items() if f"{name}/in" in key}
        hidden, target, seen = given["embeddings"], -1, []
        for layer in range(params["layers"]):
            seen.append(hidden)
            rows = (hidden @ given["mix"][layer].mT).cumsum(1)
            hidden = hidden + rows / torch.arange(1, rows.shape[1] + 1)[:, None]
            x = normed(hidden)
            plain = (
                F.silu(x @ given["gate"][layer].mT) * (x @ given["up"][layer].mT) @ given["down"][layer].mT
            )
            edited = layer == target
            hidden = hidden + (
                retrieve(x, plain, given["visual"][None], params["ratio"]) if edited else plain
            )
            entropy = float(uncertainty(normed(hidden[0, -1]) @ given["head"].mT))
            assert entropy == pytest.approx(float(tensors[f"{name}/out/entropy"][layer]), abs=1e-4)
            inside = params["start"] < layer < params["end"]
            if target < 0 and inside and entropy > params["threshold"]:
                target = layer + 1
        assert target == int(tensors[f"{name}/out/target"])
        got = torch.cat([*seen, normed(hidden)])
        torch.testing.assert_close(got, tensors[f"{name}/out/hidden"], rtol=2e-4, atol=2e-5)
    assert len(spec["cases"]) >= 4


def normed(x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def test_invariants():
    generator = torch.Generator().manual_seed(0)
    x, plain, z = (torch.randn(2, n, 8, generator=generator) for n in (5, 5, 7))
    mixed = retrieve(x, plain, z, 0.4)
    torch.testing.assert_close(retrieve(x, plain, 3 * z, 0.4), mixed)
    torch.testing.assert_close(retrieve(x, plain, z.flip(1), 0.4), mixed)
    assert (mixed.abs().mean((1, 2)) <= plain.abs().mean((1, 2)) + 1e-6).all()
    assert torch.equal(retrieve(x, plain, torch.zeros_like(z), 0.4), plain)
    visible = torch.tensor([[False, False, True, True, True], [True] * 5])
    alone = retrieve(x[:1, 2:], plain[:1, 2:], z[:1], 0.4)
    torch.testing.assert_close(retrieve(x, plain, z, 0.4, visible)[:1, 2:], alone)


# In a model -------------------------------------------------------------------------------------------


class Edited:
    """A model whose MLPs are edited as MemVR's are, by hooks of the test's own, for one prompt."""

    def __init__(self, method: MemVR, columns: torch.Tensor):
        self.model, self.method, self.columns = tiny_llava(), method, columns
        decoder, (first, last) = self.model.model.language_model, method.layers
        self.norm, self.targets, self.hits = decoder.norm, range(first + 1, last + 2), []
        for number, layer in enumerate(decoder.layers):
            layer.register_forward_pre_hook(self.enter(number), with_kwargs=True)
            layer.mlp.register_forward_hook(self.mix(number))

    def enter(self, number):
        def hook(module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            if number == 0:
                self.hit = None
                if hidden.shape[1] > 1:
                    self.visual = hidden[0, self.columns]
            if number in self.targets and self.hit is None:
                best = self.model.lm_head(self.norm(hidden[0, -1])).topk(10).values.softmax(-1)
                if -(best * best.log()).sum() / math.log(10) > self.method.threshold:
                    self.hit = number
                    self.hits.append(number)

        return hook

    def mix(self, number):
        def hook(module, args, output):
            if number != self.hit:
                return output
            found = args[0] @ self.visual.T @ self.visual
            size = (output.abs(), found.abs())
            if self.method.scale == "row":
                gain = size[0].mean(-1, keepdim=True) / size[1].mean(-1, keepdim=True)
            else:
                gain = size[0].mean() / size[1].mean()
            return (1 - self.method.ratio) * output + self.method.ratio * gain * found

        return hook


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(
    "method", [ACTING, MemVR(ratio=0.3, threshold=0.8, layers=(0, 4)), MemVR(scale="row", layers=(2, 3))]
)
def test_every_step_is_that_of_a_model_edited_by_hooks(model, gaze, method, images):
    inputs = gaze.inputs([[picture(n) for n in range(images)]], ["Is there a dog in the image?"])
    columns = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    other = Edited(method, columns)
    want = logits_of(other.model, inputs)
    with gaze.using(method):
        got = logits_of(model, inputs)
    assert_same_scores(got, want, tolerance=5e-4)
    assert other.hits


@pytest.mark.parametrize(("depth", "edited"), [(32, range(7, 17)), (40, range(9, 21)), (2, range(1, 2))])
def test_by_default_the_layers_are_the_papers(depth, edited):
    context, method = context_for([[1, 3, 3, 5]], layers=depth), MemVR()
    method.prepare(context)
    assert context.state(method)["targets"] == edited


@pytest.mark.parametrize("method", [ACTING, MemVR(ratio=0.6, threshold=0.3, layers=(1, 4), scale="row")])
def test_batches_and_prompts_without_an_image(model, gaze, method):
    together = check_batch(gaze, method)
    plain = logits_of(model, inputs_of(gaze))
    assert_same_scores(together[:, 2], plain[:, 2])
    assert not torch.allclose(together[:, 0], plain[:, 0], atol=1e-2)


def test_neutral_strengths_padding_shared_keys_choices_and_json(gaze):
    check_neutral(gaze, MemVR(ratio=0.0), MemVR(threshold=1.0))
    check_padding(gaze, ACTING)
    check_shared_keys(MemVR(ratio=0.6, threshold=0.0, layers=(0, 2)))
    check_choices(gaze, ACTING)
    check_json(MemVR(ratio=0.3, layers=(1, 2), scale="row"))


def test_a_threshold_that_no_layer_reaches_changes_nothing(model, gaze):
    inputs = inputs_of(gaze)
    plain = logits_of(model, inputs)
    with gaze.using(MemVR(ratio=0.9, threshold=0.9999, layers=(1, 4))):
        assert torch.equal(logits_of(model, inputs), plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.5}, r"ratio must be float in \[0, 1\], got 1.5"),
        ({"threshold": -1.0}, "threshold must be float >= 0"),
        ({"scale": "batch"}, "scale must be 'sample' or 'row', got 'batch'"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        MemVR(**changes)


def test_the_last_layer_has_no_mlp_after_it(gaze):
    with pytest.raises(BadParameterError, match="the MLP after layer 5"), gaze.using(MemVR(layers=(2, 5))):
        gaze.model(**inputs_of(gaze, slice(0, 1)))
