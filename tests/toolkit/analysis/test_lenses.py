"""The logit lens against the model's own hidden states, the class lens against the authors' outputs."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from family_checks import case_of
from hypothesis import given
from hypothesis import strategies as st
from models import llava_processor, picture, tiny_llama
from safetensors.torch import load_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)
from zoo.every import RUNNING, label, skip_if_older

import regaze
from regaze import Role, TokenMap
from regaze.errors import BadParameterError, InputError, ShapeError, UnsupportedModelError
from regaze.interventions import VCD
from regaze.toolkit.analysis import (
    ClassLens,
    Inputs,
    class_change_rate,
    class_lens,
    class_logits_of,
    class_rank,
    identifiability,
    key_importance,
    logit_lens,
    perturbed_attention,
    rhythm,
    with_answers,
)
from regaze.toolkit.model import compat
from regaze.toolkit.model.hidden_logits import LogitReader

# The logit lens ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(gaze):
    prompts = gaze.inputs([picture(1), picture(2)], ["Is there a dog in the image?", "What?"])
    return with_answers(gaze, prompts, ["Yes, a dog", "No"])


@pytest.fixture(scope="module")
def expected(model, inputs):
    """Logits of every stream, [7, B, L, V], from transformers' own hidden states."""
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        out = model(**inputs, position_ids=positions, output_hidden_states=True)
        norm, head = model.get_decoder().norm, model.lm_head
        # The last of transformers' hidden states has been through the norm.
        states = [head(norm(state)) for state in out.hidden_states[:-1]] + [head(out.hidden_states[-1])]
    assert torch.allclose(states[-1], out.logits, atol=1e-5)
    return torch.stack(states)


def test_every_layer_is_read_as_the_model_reads_its_last(gaze, inputs, expected, monkeypatch):
    for elements in (1 << 24, 3000):  # all rows at once, and two at a time
        monkeypatch.setattr("regaze.toolkit.analysis.lenses._ELEMENTS", elements)
        lens = logit_lens(gaze, inputs, k=3, targets=[7, 30])
        assert lens.layers == tuple(range(7))
        for sample in range(2):
            rows = lens.rows[sample][lens.rows[sample] >= 0]
            wanted = expected[:, sample, rows].softmax(-1)
            found = slice(0, len(rows))
            torch.testing.assert_close(
                lens.top_probs[:, sample, found], wanted.topk(3).values, rtol=1e-4, atol=1e-6
            )
            assert (lens.top_ids[:, sample, found] == wanted.topk(3).indices).float().mean() > 0.999
            entropy = torch.special.entr(wanted).sum(-1)
            torch.testing.assert_close(lens.entropy[:, sample, found], entropy, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                lens.target_probs[:, sample, found], wanted[..., [7, 30]], rtol=1e-3, atol=1e-7
            )
            ranks = (wanted[..., None, :] > wanted[..., [7, 30], None]).sum(-1)
            assert (lens.target_ranks[:, sample, found] - ranks).abs().max() <= 1  # of next to equal ones


def test_rows_layers_and_words(gaze, inputs, expected):
    lens = logit_lens(gaze, inputs, rows="answer", layers=[6, 0], targets=["dog"])
    tokenizer = llava_processor().tokenizer
    assert lens.layers == (0, 6)
    assert lens.rows.shape == lens.top_ids.shape[1:3] == (2, 6)
    (dog,) = tokenizer(" dog", add_special_tokens=False)["input_ids"]
    assert lens.targets == (dog,)
    words = lens.words(sample=1)
    assert [len(layer) for layer in words] == [2, 2]  # sample 1 has fewer rows
    last = int(lens.rows[1, 1])
    best = int(expected[6, 1, last].argmax())
    assert words[1][1] == spelled(best)


def spelled(token):
    text = llava_processor().tokenizer.decode([token])
    return text.strip() or text


def test_what_word_is_each_patch(gaze, inputs, expected):
    lens = logit_lens(gaze, inputs, k=2, targets=[7])
    cells = lens.tokens.image_cells(1)
    grid = lens.image_words(3, sample=1)
    assert [len(row) for row in grid] == [8] * 8
    best = expected[3, 1, cells].argmax(-1).tolist()
    assert [word for row in grid for word in row] == [spelled(i) for i in best]
    second = expected[3, 1, cells].topk(2).indices[:, 1].tolist()
    words = [word for row in lens.image_words(3, sample=1, best=1) for word in row]
    assert words == [spelled(i) for i in second]
    probabilities = expected[:, 1, cells].softmax(-1)[..., 7]
    torch.testing.assert_close(lens.image_map(sample=1).flatten(1), probabilities, rtol=1e-3, atol=1e-7)


def with_roles(ids):
    """Inputs of a model without a tokenizer."""
    return Inputs({"input_ids": ids}, TokenMap.from_roles(torch.full(ids.shape, int(Role.QUERY))))


def test_a_soft_cap_belongs_to_the_reading():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = Gemma2Config(
        **sizes, vocab_size=60, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.7
    )
    config._attn_implementation = "eager"
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    ids = torch.randint(5, 60, (1, 9))
    lens = logit_lens(regaze.wrap(model), with_roles(ids), targets=[11])
    with torch.no_grad():
        own = model(input_ids=ids).logits.softmax(-1)
    assert own.std() > 1e-3
    torch.testing.assert_close(lens.target_probs[-1, 0, :, 0], own[0, :, 11], rtol=1e-4, atol=1e-7)
    assert lens.strings == {}


def test_what_cannot_be_read(gaze, inputs):
    for wrong, message in (
        ({"k": 0}, "k must be in 1"),
        ({"layers": [7, 8]}, r"layers \[7, 8\] do not exist; there are 0\.\.6"),
        ({"targets": [5000]}, "target 5000 is not among the ids"),
        ({"rows": "some"}, "rows must be one of"),
    ):
        with pytest.raises(BadParameterError, match=message):
            logit_lens(gaze, inputs, **wrong)
    lens = logit_lens(gaze, inputs, rows="answer", layers=[2])
    with pytest.raises(InputError, match='rows="all"'):
        lens.image_words(2)
    with pytest.raises(BadParameterError, match="layer 3 was not read"):
        logit_lens(gaze, inputs, layers=[2]).image_words(3)
    with pytest.raises(BadParameterError, match="target 0 was not asked for"):
        lens.image_map()
    with gaze.using(VCD()), pytest.raises(UnsupportedModelError, match="another intervention"):
        logit_lens(gaze, inputs)
    with pytest.raises(InputError, match="no tokenizer"):
        logit_lens(regaze.wrap(tiny_llama()), with_roles(torch.tensor([[5, 6]])), targets=["dog"])


#: Families that count positions by their own rule, have layers without attention, or get labels.
UNLIKE = ("kosmos-2", "kosmos-2.5", "lfm2_vl", "qwen3_5", "paligemma", "gemma3")


@pytest.mark.parametrize("entry", [entry for entry in RUNNING if entry.name in UNLIKE], ids=label)
def test_every_layer_of_any_family_is_read_as_in_its_own_forward(entry):
    skip_if_older(entry)
    gaze = case_of(entry).gaze
    prompts = gaze.inputs([picture(1)], ["What is there?"])
    assert "labels" not in prompts
    lens = logit_lens(gaze, prompts)
    reader = LogitReader(gaze.model)
    with torch.no_grad():
        out = gaze.model(**prompts, output_hidden_states=True)
        states = [reader.read(state).softmax(-1) for state in out.hidden_states[:-1]]
        states.append(out.logits.softmax(-1))
    assert lens.layers == tuple(range(len(states)))
    rows = lens.rows[0]
    for layer, probabilities in enumerate(states):
        expected = probabilities[0, rows].amax(-1)
        torch.testing.assert_close(lens.top_probs[layer, 0, :, 0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "entry",
    [entry for entry in RUNNING if entry.name in ("kosmos-2", "lfm2_vl", "qwen3_5", "mllama")],
    ids=label,
)
def test_attention_is_measured_in_the_layers_that_have_it(entry):
    """Also behind prompts whose inputs say more of each token than its id."""
    skip_if_older(entry)
    gaze = case_of(entry).gaze
    prompts = gaze.inputs([picture(1)], ["What is there?"])
    answered = with_answers(gaze, prompts, ["Yes, it is"])
    importance = key_importance(gaze, answered)
    with gaze.recording() as record, torch.no_grad():
        gaze.model(**prompts)
    own = record[0].layers
    assert importance.shape[0] == len(own)
    assert importance.isfinite().all()
    assert rhythm(gaze, answered)[0].layers == own
    depth = len(compat.decoder_layers(gaze.model))
    for layer in {*range(depth)} - {*own}:
        with pytest.raises(BadParameterError, match=rf"layers \[{layer}\] do not exist; .* with attention"):
            key_importance(gaze, answered, layers=[layer])


# The class lens ---------------------------------------------------------------------------------------


def golden(goldens, name):
    folder = goldens / "methods/vit_cls"
    cases = json.loads((folder / f"{name}.json").read_text())["cases"]
    return cases, load_file(folder / f"{name}.safetensors")


def test_golden_identifiability(goldens):
    cases, tensors = golden(goldens, "identifiability")
    for name, case in cases.items():
        given = {key: tensors[f"{name}/in/{key}"] for key in ("hidden", "ln_weight", "ln_bias")}
        want = {key.split("/")[-1]: t for key, t in tensors.items() if key.startswith(f"{name}/out/")}
        true, width = case["params"]["true_class"], (case["params"]["width"],)
        normed = F.layer_norm(
            given["hidden"], width, given["ln_weight"], given["ln_bias"], case["params"]["ln_eps"]
        )
        logits = F.linear(normed, tensors[f"{name}/in/head_weight"], tensors[f"{name}/in/head_bias"])
        lens = ClassLens(logits, prefix=1)
        assert torch.equal(class_rank(logits, true), want["rank"])
        assert torch.equal(logits.topk(5).indices, want["top5"])
        torch.testing.assert_close(class_logits_of(logits, true), want["true_logit"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lens.change_rate(true), want["change_rate"], rtol=0, atol=1e-6)
        torch.testing.assert_close(lens.identifiability(true), want["identifiability"], rtol=0, atol=1e-6)


def test_golden_perturbed_attention(goldens):
    cases, tensors = golden(goldens, "attention_perturbation")
    for name, case in cases.items():
        params, x = case["params"], tensors[f"{name}/in/x"]
        weights = {key: tensors[f"{name}/weights/{key}"] for key in ("qkv.weight", "qkv.bias", "proj.weight")}
        qkv = F.linear(x, weights["qkv.weight"], weights["qkv.bias"])
        shape = (params["batch"], params["tokens"], 3, params["heads"], -1)
        out, attention = perturbed_attention(*qkv.view(shape).permute(2, 0, 3, 1, 4), params["mode"])
        projected = F.linear(
            out.transpose(1, 2).flatten(2), weights["proj.weight"], tensors[f"{name}/weights/proj.bias"]
        )
        torch.testing.assert_close(attention, tensors[f"{name}/out/attn"], rtol=0, atol=1e-5)
        torch.testing.assert_close(projected, tensors[f"{name}/out/out"], rtol=0, atol=1e-5)


def test_patches_that_do_not_look_at_the_class_token():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4) for _ in range(3))
    plain = (q @ k.mT / 2).softmax(-1)
    out, weights = perturbed_attention(q, k, v, "no_cls", prefix=2)
    expected = plain.clone()
    expected[:, :, 2:, 0] = 0.0  # not renormalised
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(out, expected @ v)
    alone = perturbed_attention(q, k, v, "self_only")[1]
    torch.testing.assert_close(alone[:, :, 0], plain[:, :, 0])
    assert torch.equal(alone[:, :, 1:, 1:], torch.eye(6).expand(2, 3, -1, -1))
    with pytest.raises(BadParameterError, match="mode must be"):
        perturbed_attention(q, k, v, "none")


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 3}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=20, patch_size=4, num_labels=11)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def test_the_class_token_of_the_last_block_gives_the_models_logits(vit):
    pixels = torch.randn(4, 3, 20, 20)
    lens = class_lens(vit, pixels)
    assert lens.logits.shape == (4, 4, 26, 11)
    with torch.no_grad():
        own = vit(pixel_values=pixels).logits
        embedded = vit.vit.embeddings(pixels)
        first = vit.classifier(vit.vit.layernorm(embedded))
    assert torch.equal(lens.logits[-1, :, 0], own)
    assert torch.equal(lens.logits[0], first)
    best = own.argmax(-1)
    assert torch.equal(lens.identifiability(best)[-1, :, 0], torch.ones(4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())


def test_a_tower_without_classes_takes_those_given():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=20, patch_size=4)).eval()
    pixels, words = torch.randn(2, 3, 20, 20), torch.randn(5, 24)
    lens = class_lens(model, pixels, head=lambda tokens: tokens @ words.T)
    with torch.no_grad():
        pooled = model(pixel_values=pixels).pooler_output @ words.T
    torch.testing.assert_close(lens.logits[-1, :, 0], pooled, rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedModelError, match="no class embeddings"):
        class_lens(model, pixels)
    with pytest.raises(ShapeError, match=r"\[N, 3, H, W\]"):
        class_lens(model, pixels[0])


@given(st.integers(2, 9), st.integers(0, 5), st.randoms(use_true_random=False))
def test_ranks_of_classes(classes, seed, random):
    torch.manual_seed(seed)
    logits = torch.randint(0, 4, (2, 3, 5, classes)).float()  # with ties
    true = torch.tensor([random.randrange(classes) for _ in range(3)])
    ranks = class_rank(logits, true)
    order = logits.argsort(dim=-1, descending=True, stable=True)
    position = (order == true[None, :, None, None]).int().argmax(-1)
    assert torch.equal(ranks, position)
    assert torch.equal(class_rank(logits + 3, true), ranks)
    shuffled = torch.randperm(classes)
    distinct = logits + torch.arange(classes) * 0.01
    moved = torch.argsort(shuffled)[true]
    assert torch.equal(class_rank(distinct[..., shuffled], moved), class_rank(distinct, true))
    found = identifiability(logits, true)
    assert found.min() > 0
    assert found.max() <= 1


def test_change_rate_counts_patches_of_all_images():
    own = torch.zeros(3, 2, 4)  # one class token, three patches
    own[1, :, 0] = 5.0
    own[1, 0, 1:] = 1.0  # all three of the first image rise
    own[2] = own[1]
    own[2, 1, 3] = 0.5
    torch.testing.assert_close(class_change_rate(own), torch.tensor([3 / 6, 1 / 6], dtype=torch.float64))
    torch.testing.assert_close(class_change_rate(own, 0), torch.tensor([5 / 8, 1 / 8], dtype=torch.float64))


def test_classes_that_do_not_exist():
    logits = torch.zeros(2, 3, 4, 5)
    with pytest.raises(BadParameterError, match=r"0\.\.4"):
        class_rank(logits, 5)
    with pytest.raises(ShapeError, match=r"one number or \[N\] = \[3\]"):
        identifiability(logits, torch.tensor([1, 2]))
