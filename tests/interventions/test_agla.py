"""AGLA against the paper's hand examples, the authors' outputs, an explicit GradCAM and fresh forwards."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import logits_of, picture
from PIL import Image
from safetensors.torch import load_file
from standins import leftmost
from transformers import (
    AutoModelForCausalLM,
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipProcessor,
    Qwen2VLImageProcessorPil,
)

import regaze
from regaze.errors import BadParameterError, InputError, ModelNotFoundError, UnsupportedModelError
from regaze.interventions.agla.black_out import black_out
from regaze.interventions.agla.itm_gradcam import BlipRelevance, gradcam
from regaze.interventions.agla.method import AGLA, keep_mask, smooth_map
from regaze.toolkit.model.logits import combine
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.pixels import Patches, Tiles, read_pieces


def golden(goldens, name: str):
    folder = goldens / "methods" / "agla"
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


# Logits -------------------------------------------------------------------------------------------------


def mixed(agla: AGLA, main: torch.Tensor, local: torch.Tensor, step: int = 0) -> torch.Tensor:
    """What AGLA makes of the logits [B, V] of both branches."""
    context = SimpleNamespace(
        state=lambda owner: {"where": None},
        logits=lambda name=None: (main if name is None else local)[:, None],
        step=step,
    )
    return combine(main[:, None], [agla.combine_logits(context)])[:, 0]


def test_hand_example():
    main, local = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.5, 2.0, 0.0]])
    assert mixed(AGLA(), main, local).tolist() == [[3.0, -torch.inf, -torch.inf]]
    loose = mixed(AGLA(beta=0.1), main, local)  # the cut reads the user's logits alone
    assert loose.tolist() == [[3.0, 5.0, 0.0]]
    torch.testing.assert_close(mixed(AGLA(beta=0.0), main, main), 3 * main)
    assert mixed(AGLA(beta=1.0), main, local).isfinite().tolist() == [[True, False, False]]
    assert mixed(AGLA(beta=0.0, as_released=True), main, local, step=1).tolist() == [[6.0, 3.0, 0.0]]


def test_golden_combine(goldens):
    spec, tensors = golden(goldens, "combine")
    for name, case in spec["cases"].items():
        agla = AGLA(alpha=case["params"]["alpha"], beta=case["params"]["beta"])
        main, local = (tensors[f"{name}/in/logits_{which}"].flatten(0, 1) for which in ("main", "second"))
        expected = tensors[f"{name}/out/scores"].flatten(0, 1)
        torch.testing.assert_close(mixed(agla, main, local), expected, rtol=1e-5, atol=2e-6)


class GoldenAGLA(AGLA):
    """The text model of the golden has no images: other tokens stand for the masked one."""

    def branches(self, context):
        context.state(self)["where"] = None
        return {self.branch: Branch({"input_ids": self.relevance(None, "")[0]})}


def test_golden_end_to_end(goldens, tmp_path):
    spec, tensors = golden(goldens, "e2e")
    folder = goldens / "methods" / "pai"
    shutil.copy(folder / "e2e_weights.safetensors", tmp_path / "model.safetensors")
    shutil.copy(folder / "e2e_config.json", tmp_path / "config.json")
    gaze = regaze.wrap(AutoModelForCausalLM.from_pretrained(tmp_path).eval())
    for name, case in spec["cases"].items():
        ids, second = tensors[f"{name}/in/input_ids"], tensors[f"{name}/in/second_ids"]
        for suffix in ("", "_as_released"):
            agla = GoldenAGLA(
                case["params"]["alpha"],
                case["params"]["beta"],
                relevance=lambda image, text, second=second: (second, 0.0),
                as_released=bool(suffix),
            )
            with gaze.using(agla):
                got = logits_of(gaze.model, {"input_ids": ids})[:, 0]
            expected = tensors[f"{name}/out/scores{suffix}"]
            torch.testing.assert_close(got, expected, rtol=0, atol=5e-4)
            assert torch.equal(got.argmax(-1), tensors[f"{name}/out/tokens{suffix}"])


# Mask ---------------------------------------------------------------------------------------------------


def test_golden_masks(shared):
    for name in ("mask_sim0.4", "mask_sim0.83", "mask_sim0.1_noise"):
        spec, tensors = golden(shared / "goldens", name)
        for case, about in spec["cases"].items():
            similarity, stored = about["params"]["sim"], tensors[f"{case}/out/map"]
            packed = tensors[f"{case}/out/mask_packed"].numpy()
            expected = np.unpackbits(packed).reshape(384, 384).astype(bool)
            assert np.array_equal(keep_mask(stored.numpy(), similarity), expected)
            assert expected.sum() == int(tensors[f"{case}/out/kept_pixels"])
            values = smooth_map(tensors[f"{case}/in/relevance"])
            torch.testing.assert_close(torch.tensor(values).float(), stored, rtol=0, atol=1e-4)
            assert (keep_mask(values, similarity) == expected).mean() >= 0.995


def test_how_many_pixels_stay():
    values = np.random.default_rng(0).permutation(384 * 384).reshape(384, 384)
    assert keep_mask(values, 0.4).sum() == 117_965
    for similarity in (0.0, -0.5):  # no match: nothing to speak of is masked
        assert keep_mask(values, similarity).sum() == 384 * 384 - 1
    assert keep_mask(values, 2.5).sum() == 1
    assert keep_mask(np.zeros((384, 384)), 0.8).all()


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_better_match_masks_more(seed, a, b):
    values = np.random.default_rng(seed).random((30, 20))
    assert (keep_mask(values, max(a, b)) <= keep_mask(values, min(a, b))).all()


def test_maps_of_any_shape_and_no_relevance_at_all():
    assert smooth_map(torch.rand(3, 5)).shape == (384, 384)
    assert smooth_map(np.random.default_rng(0).random((500, 400))).shape == (384, 384)
    assert not smooth_map(torch.zeros(24, 24)).any()
    assert not smooth_map(torch.ones(24, 24)).any()
    for wrong in (torch.ones(4), torch.tensor([[0.0, torch.nan]])):
        with pytest.raises(InputError, match="relevance map"):
            smooth_map(wrong)


# BLIP ---------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "there", "a", "dog", "cat", "in", "the", "image"]


@pytest.fixture(scope="module")
def blip():
    """A random BLIP: 8 text blocks, 3 x 3 patches, weights large enough for attention that is not flat."""
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate([*WORDS, "?", "[ENC]"])})
    text = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 8, "intermediate_size": 32}
    text |= {"vocab_size": 16, "encoder_hidden_size": 20, "bos_token_id": 2, "sep_token_id": 3}
    vision = {"hidden_size": 20, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
    vision |= {"image_size": 48, "patch_size": 16}
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8)
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval(), BlipProcessor(BlipImageProcessorPil(size={"height": 48, "width": 48}), tokenizer)


def explicit_map(blip, image, ids: list[int], layer: int) -> torch.Tensor:
    """GradCAM with the block's attention weights cut out of the graph and put back as a leaf."""
    model, processor = blip
    pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    seen = model.vision_model(pixels).last_hidden_state
    attention = model.text_encoder.encoder.layer[layer].crossattention.self
    kept = {}

    def replace(module, args, kwargs, output):
        leaf = kept.setdefault("leaf", output[1].detach().requires_grad_())
        value = module.value(seen).view(1, seen.shape[1], 3, 8).transpose(1, 2)
        return (leaf @ value).transpose(1, 2).reshape(1, len(ids), 24), leaf

    handle = attention.register_forward_hook(replace, with_kwargs=True)
    try:
        with torch.enable_grad():
            out = model.text_encoder(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids)),
                encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:2]),
            )
            model.itm_head(out.last_hidden_state[:, 0])[0, 1].backward()
    finally:
        handle.remove()
    total = torch.zeros(9)
    for head in range(3):
        for token in range(1, len(ids) - 1):
            weight, slope = kept["leaf"][0, head, token, 1:], kept["leaf"].grad[0, head, token, 1:]
            total += weight.detach() * slope.clamp_min(0)
    model.zero_grad()
    return total.view(3, 3) / 3 / (len(ids) - 2)


@pytest.mark.parametrize(("layer", "encode_token"), [(6, None), (6, 14), (2, None)])
def test_relevance_equals_an_explicit_gradcam(blip, layer, encode_token):
    image = picture(3, 60, 40)
    relevance = BlipRelevance(*blip, layer=layer, encode_token=encode_token)
    got, similarity = relevance(image, "Is there a DOG in the image?")
    ids = [2 if encode_token is None else encode_token, 5, 6, 7, 8, 10, 11, 12, 13, 3]
    expected = explicit_map(blip, image, ids, layer)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)
    assert (expected > 0).sum() > 3
    model, processor = blip
    with torch.no_grad():
        pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        out = model(torch.tensor([[2, *ids[1:]]]), pixels, use_itm_head=False)
    assert similarity == pytest.approx(float(out.itm_score), abs=1e-5)


def test_the_gradient_keeps_its_sign(blip):
    model, processor = blip
    image = picture(3, 60, 40)
    plain, _ = BlipRelevance(model, processor)(image, "a dog")
    with torch.no_grad():
        model.itm_head.weight.neg_()
    try:
        negated, _ = BlipRelevance(model, processor)(image, "a dog")
    finally:
        with torch.no_grad():
            model.itm_head.weight.neg_()
    assert not torch.allclose(plain, negated, rtol=0.1)


def test_relevance_in_inference_mode_long_questions_and_none(blip):
    relevance, image = BlipRelevance(*blip), picture(3)
    plain, similarity = relevance(image, "is there a dog in the image?")
    with torch.inference_mode():
        again, same = relevance(image, '  Is there a "dog" in the image?! ')
    assert torch.equal(plain, again)
    assert similarity == same
    long, _ = relevance(image, "is there a dog in the image " * 10)
    assert torch.isfinite(long).all()
    assert long.any()
    assert not relevance(image, "!!!")[0].any()
    assert all(parameter.grad is None for parameter in blip[0].parameters())


def test_golden_relevance(goldens):
    _, tensors = golden(goldens, "relevance")
    for name in ("n5", "n7_padded"):
        attention, gradient, mask = (tensors[f"{name}/in/{which}"] for which in ("attn", "grad", "text_mask"))
        got = gradcam(attention, gradient, mask).view(1, 24, 24)
        torch.testing.assert_close(got, tensors[f"{name}/out/relevance"], rtol=1e-5, atol=1e-6)


def test_blip_is_loaded_by_name_while_generating(gaze, blip, tmp_path):
    model, processor = blip
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images, questions = [picture(0)], ["Is there a dog in the image?"]
    with gaze.using(AGLA(relevance=str(tmp_path))) as active:
        by_name = active.ask(images, questions, max_new_tokens=4)
    with gaze.using(AGLA(relevance=BlipRelevance(*blip))) as active:
        assert active.ask(images, questions, max_new_tokens=4) == by_name
    with pytest.raises(ModelNotFoundError, match="nowhere"), gaze.using(AGLA(relevance="./nowhere")):
        gaze.ask(images, questions, max_new_tokens=4)
    with pytest.raises(BadParameterError, match=r"blocks 0\.\.7"):
        BlipRelevance(*blip, layer=8)


# In a model ---------------------------------------------------------------------------------------------


def content(image: Image.Image, text: str) -> tuple[np.ndarray, float]:
    """A map that differs from image to image."""
    return np.asarray(image.convert("L").resize((6, 6))) * (1.0 + len(text)), 0.9


QUESTIONS = ["Is there a dog in the image?", "What?", "Please describe this image in detail."]
PICTURES = [[picture(0)], [picture(1), picture(2)], [picture(3)]]


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs(PICTURES, QUESTIONS)


class Watch(AGLA):
    """AGLA that notes what it is asked and what the branch says."""

    def note(self) -> Watch:
        object.__setattr__(self, "masks", [])
        object.__setattr__(self, "local", [])
        return self

    def masked(self, context):
        self.masks.append(super().masked(context))
        return self.masks[-1]

    def combine_logits(self, context):
        self.local.append(context.logits(self.branch)[:, -1].clone())
        return super().combine_logits(context)


def test_what_is_masked_is_black_and_the_rest_keeps_its_bits(gaze, inputs):
    watch = Watch(relevance=leftmost).note()
    with gaze.using(watch):
        gaze.model.generate(**inputs, max_new_tokens=1)
    pixels, masked = inputs["pixel_values"], watch.masks[0]
    image_processor = gaze.processor.image_processor
    shown = torch.stack(read_pieces(Tiles(), image_processor, {"pixel_values": masked}))
    black = (shown.abs() < 1e-5).all(1)
    assert torch.equal(masked[~black[:, None].expand_as(masked)], pixels[~black[:, None].expand_as(pixels)])
    share = black.float().mean((1, 2))
    expected = torch.tensor([28 / 60, 5 / 60, 5 / 60, 0.5])  # half of the similarity
    torch.testing.assert_close(share, expected, rtol=0, atol=0.02)
    assert not black[:, 10:-10, 10:40].any()  # the border is darkened by the spline of the release
    assert black[0, :, -20:].all()


def test_only_the_question_counts():
    reader = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "".join(map(chr, ids))))
    text = "Is it? Answer the question using a single word or phrase."
    tokens = regaze.TokenMap.from_roles([[regaze.Role.IMAGE, *[regaze.Role.QUERY] * len(text)]])
    ids = torch.tensor([[0, *map(ord, text)]])
    context = SimpleNamespace(tokens=tokens, prompt_ids=lambda: ids, reader=reader)
    assert AGLA()._questions(context) == ["Is it?"]
    assert AGLA(not_asked=())._questions(context) == [text]
    context.tokens = regaze.TokenMap.from_roles([[regaze.Role.IMAGE, *[regaze.Role.TAIL] * len(text)]])
    with pytest.raises(InputError, match="QUERY"):
        AGLA()._questions(context)


def test_every_image_is_asked_about_with_its_own_question(gaze, inputs):
    asked = []

    def relevance(image, text):
        asked.append((image.size, text))
        return content(image, text)

    with gaze.using(AGLA(relevance=relevance)):
        gaze.model.generate(**inputs, max_new_tokens=1)
        assert asked == [((112, 112), QUESTIONS[i]) for i in (0, 1, 1, 2)]
        asked.clear()
        gaze.model.generate(**inputs, max_new_tokens=1, num_beams=3)
    assert len(asked) == 4  # once for all beams


def test_branch_logits_equal_a_fresh_forward_on_the_masked_image(model, gaze, inputs):
    """The test that the release fails from the second token on."""
    watch = Watch(relevance=content).note()
    with gaze.using(watch):
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    new = out[:, inputs["input_ids"].shape[1] :]
    for step in range(4):
        ids = torch.cat([inputs["input_ids"], new[:, :step]], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(new[:, :step])], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            fresh = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, pixel_values=watch.masks[0]
            ).logits[:, -1]
        torch.testing.assert_close(watch.local[step], fresh, rtol=1e-4, atol=1e-4)


def test_neutral_strength_is_bit_identical_and_alpha_zero_only_cuts(model, gaze, inputs):
    plain = logits_of(model, inputs)

    def forbidden(image, text):
        raise AssertionError("a branch without weight was made")

    with gaze.using(AGLA(alpha=0.0, beta=0.0, relevance=forbidden)):
        assert torch.equal(plain, logits_of(model, inputs))
    with gaze.using(AGLA(alpha=0.0, relevance=forbidden)):
        cut = logits_of(model, inputs)
    least = plain.amax(-1, keepdim=True) + np.log(0.5)
    assert torch.equal(cut, plain.masked_fill(plain < least, -torch.inf))
    with gaze.using(AGLA(beta=0.0, relevance=lambda image, text: (np.zeros((2, 2)), 1.0))):
        torch.testing.assert_close(logits_of(model, inputs), 3 * plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("as_released", [False, True])
def test_a_batch_is_its_singles(model, gaze, inputs, as_released):
    with gaze.using(AGLA(relevance=content, beta=0.05, as_released=as_released)):
        both = logits_of(model, inputs)
        for row, question in enumerate(QUESTIONS):
            alone = logits_of(model, gaze.inputs(PICTURES[row : row + 1], [question]))
            torch.testing.assert_close(both[:, row], alone[:, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_prompt_without_an_image_is_left_alone(model, gaze, alpha):
    alone, mixed_batch = (gaze.inputs([None], QUESTIONS[:1]), gaze.inputs([None, picture(0)], QUESTIONS[:2]))
    plain = logits_of(model, alone)
    with gaze.using(AGLA(alpha=alpha, relevance=content)):
        assert torch.equal(logits_of(model, alone), plain)
        both = logits_of(model, mixed_batch)
    torch.testing.assert_close(both[:, 0], plain[:, 0], rtol=1e-3, atol=1e-3)
    assert both[:, 1].isinf().any()


def test_padding_on_the_right_changes_nothing(model, gaze, inputs):
    length = inputs["input_ids"].shape[1]
    right = {name: value.clone() for name, value in inputs.items()}
    for row, count in enumerate(inputs["attention_mask"].sum(1).tolist()):
        for name in ("input_ids", "attention_mask"):
            right[name][row] = inputs[name][row].roll(-(length - count))
    agla = AGLA(relevance=content, beta=0.0)
    with gaze.using(agla), torch.no_grad():
        padded_left = model(**inputs).logits[:, -1]
        logits = model(**right).logits
    padded_right = logits[torch.arange(3), inputs["attention_mask"].sum(1) - 1]
    torch.testing.assert_close(padded_left, padded_right, rtol=1e-3, atol=1e-3)


def test_sampling_and_beams_run(model, gaze, inputs):
    with gaze.using(AGLA(relevance=content)):
        sampled = model.generate(**inputs, max_new_tokens=3, do_sample=True)
        beams = model.generate(**inputs, max_new_tokens=3, num_beams=2)
    assert sampled.shape[0] == beams.shape[0] == 3


def test_masks_on_flattened_patches():
    """Qwen2-VL's pixel values: rows of a mask fall on the right patches, in both frames."""
    processor = Qwen2VLImageProcessorPil(patch_size=4)
    images = [picture(0, 64, 32), picture(1, 56, 72)]
    features = processor(images=images, return_tensors="pt")
    layout = Patches(merged=True)
    masks = [np.ones(p.shape[1:], bool) for p in read_pieces(layout, processor, features)]
    masks[0][3:9, 5:50] = False
    masks[1][40:, :7] = False
    blackened = black_out(processor, features, masks)
    got = read_pieces(layout, processor, {**features, "pixel_values": blackened})
    for pixels, mask, plain in zip(got, masks, read_pieces(layout, processor, features), strict=True):
        shown = torch.tensor(mask)
        assert (pixels[:, ~shown].abs() < 1e-5).all()
        assert torch.equal(pixels[:, shown], plain[:, shown])
    frames = blackened.view(len(blackened), 3, 2, 4, 4)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])


def test_unknown_pixel_values_are_refused(gaze, inputs):
    tiles = {**inputs, "pixel_values": inputs["pixel_values"].expand(1, 4, 3, 112, 112)}
    ids = inputs["input_ids"]
    context = SimpleNamespace(inputs=tiles, prompt_ids=lambda: ids, reader=gaze.reader, device="cpu")
    with pytest.raises(UnsupportedModelError, match=r"\[1, 4, 3, 112, 112\]"):
        AGLA(relevance=content).masked(context)


# Parameters ---------------------------------------------------------------------------------------------


def test_json():
    agla = AGLA(alpha=1.0, relevance="./blip", not_asked=("In one word.",))
    assert AGLA.from_dict(json.loads(json.dumps(agla.to_dict()))) == agla
    assert AGLA(relevance=leftmost).to_dict()["relevance"] == "<leftmost>"


def test_equal_branches_have_equal_names():
    assert AGLA(alpha=1.0).branch == AGLA(beta=0.1).branch
    assert AGLA(relevance=leftmost).branch != AGLA(relevance=content).branch


@pytest.mark.parametrize(("name", "value"), [("alpha", -1.0), ("beta", 1.5), ("relevance", 3)])
def test_parameters_without_meaning(name, value):
    with pytest.raises(BadParameterError, match=name):
        AGLA(**{name: value})


def test_what_is_an_identity():
    assert AGLA(alpha=0.0, beta=0.0).is_identity
    assert not AGLA(alpha=0.0).is_identity
