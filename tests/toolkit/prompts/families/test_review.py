"""Regressions of families: silent errors, and messages that did not say what to do."""

from __future__ import annotations

import pytest
import torch
from family_checks import QUESTIONS, Case, case_of, noise
from models import logits_of
from zoo.every import VISION, skip_if_older

import regaze
from regaze import HeadKnockout, Role, TokenMap
from regaze.errors import BadParameterError, InputError, RecordingError, RegazeError, UnsupportedModelError
from regaze.interventions import ICD, PAI, VCD, AvisC
from regaze.toolkit.model.compat.beam_media import repeated_media
from regaze.toolkit.viewer import record_page


def case(name: str) -> Case:
    entry = next(e for e in VISION if e.name == name)
    skip_if_older(entry)
    return case_of(entry)


# Heads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("llava", 0, "layer 0 has no cross-attention.*this model has none at all"),
        ("mllama", 0, r"layer 0 has no cross-attention.*layers \[1, 3\] have"),
    ],
)
def test_a_head_of_cross_attention_that_is_not_there(name, layer, message):
    found = case(name)
    method = HeadKnockout(heads=((layer, 1),), cross=True)
    with found.gaze.using(method), pytest.raises(BadParameterError, match=message):
        logits_of(found.model, found.inputs(0), tokens=1)


def test_a_head_of_cross_attention_may_be_named_so():
    found = case("mllama")
    edited = []
    for method in (HeadKnockout(heads=((1, 1),)), HeadKnockout(heads=((1, 1),), cross=True)):
        with found.gaze.using(method):
            edited.append(logits_of(found.model, found.inputs(0), tokens=1))
    assert torch.equal(*edited)
    assert not torch.equal(edited[0], logits_of(found.model, found.inputs(0), tokens=1))


# Roles ----------------------------------------------------------------------------------------------------


def test_the_same_ids_may_show_images_of_another_shape():
    found = case("qwen2_vl")
    wide, high = (found.gaze.inputs([noise(0, *size)], QUESTIONS[:1]) for size in ((112, 56), (56, 112)))
    assert torch.equal(wide["input_ids"], high["input_ids"])
    with found.gaze.recording() as record, torch.no_grad():
        found.model.generate(**wide, max_new_tokens=2, do_sample=False)
        found.model(**high)  # not by `generate`, which had announced the first
        found.model(**wide)
    grids = [trace.tokens.grids[0][0] for trace in record.traces]
    assert grids[0] == grids[2] == grids[1][::-1]
    assert grids[0][0] < grids[0][1]
    with pytest.raises(InputError, match="image_grid_thw"):  # the ids alone tell neither
        found.gaze.tokens({name: wide[name] for name in ("input_ids", "attention_mask")})


@pytest.mark.parametrize("lost", ["a token", "its end"])
def test_a_part_of_an_image_of_llama4(lost):
    found = case("llama4")
    inputs = found.inputs(0)
    ids = inputs["input_ids"][0]
    image = found.gaze.tokens(inputs).mask(Role.IMAGE)[0].nonzero().flatten()
    gone = int(image[0]) if lost == "a token" else int((ids == found.model.config.eoi_token_index).nonzero())
    remaining = torch.cat([ids[:gone], ids[gone + 1 :]])[None]
    with pytest.raises(InputError, match=r"no whole image|not followed by"):
        regaze.wrap(found.model, found.processor).tokens(
            {**inputs, "input_ids": remaining, "attention_mask": None}
        )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llava", "<image>"),
        ("video_llava", "<video>"),
        ("qwen2_vl", "<|video_pad|>"),
        ("aya_vision", "<|IMG_PATCH|>"),
        ("gemma3", "<start_of_image>"),
    ],
)
def test_a_question_that_contains_what_stands_for_an_image(name, text):
    found = case(name)
    assert text in found.gaze.reader.tokenizer.get_vocab()
    with pytest.raises(InputError, match="stands for an image"):
        found.gaze.inputs([found.pictures[0]], [f"What does {text} mean?"])


# Methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek_vl_hybrid", "video_llava", "phi4_multimodal"])
def test_noise_reaches_all_pixels_that_a_model_is_given(name):
    """Nothing of the image is left at the noisiest step: with the full contrast another answer follows."""
    found, seen = case(name), {}

    class Noting(VCD):
        def negative(self, context):
            branch = super().negative(context)
            seen.update({k: (v, context.inputs[k]) for k, v in branch.inputs.items()})
            return branch

    with found.gaze.using(Noting(noise_step=999)):
        logits_of(found.model, found.inputs(0), tokens=2)
    pixels = {k for k in found.inputs(0) if "pixel_values" in k}
    assert pixels
    assert set(seen) == pixels
    for noised, given in seen.values():
        assert not torch.equal(noised, given)


@pytest.mark.parametrize("name", ["blip-2", "instructblip"])
def test_what_cannot_run_beside_embeddings_says_so(name):
    found = case(name)
    plain = found.plain
    with found.gaze.using(AvisC()), pytest.raises(RegazeError, match="inputs_embeds"):
        logits_of(found.model, found.inputs(0), tokens=1)
    assert torch.equal(plain, logits_of(found.model, found.inputs(0, 1)))


@pytest.mark.parametrize("name", ["paligemma", "got_ocr2"])
def test_an_instruction_where_no_prompt_is_without_an_image(name):
    found = case(name)
    with found.gaze.using(ICD(alpha=1.0)):
        edited = logits_of(found.model, found.inputs(0, 1))
        alone = logits_of(found.model, found.inputs(1), tokens=1)
    assert not torch.allclose(edited, found.plain)
    torch.testing.assert_close(edited[:1, 1:], alone, rtol=2e-4, atol=2e-4)


# Beams ----------------------------------------------------------------------------------------------------


def first_token(found: Case, **options) -> torch.Tensor:
    """Probabilities [sequences, V] under a method with a branch, of prompts of two images and of one."""
    images = [found.pictures, found.pictures[1:]]
    with found.gaze.using(PAI(alpha=0.5, gamma=1.1, layers=(0, 1))), torch.no_grad():
        out = found.model.generate(
            **found.gaze.inputs(images, QUESTIONS),
            max_new_tokens=1,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
    return out.scores[0].softmax(-1)


@pytest.mark.parametrize(
    "name", ["video_llava", "deepseek_vl_hybrid", "internvl", "gemma3", "qwen2_vl", "aria"]
)
def test_beams_over_several_images_keep_each_with_its_prompt(name):
    found = case(name)
    beams = first_token(found, num_beams=2)
    torch.testing.assert_close(beams[::2], first_token(found), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["lfm2_vl", "phi4_multimodal"])
def test_beams_over_indistinguishable_images_are_refused(name):
    with pytest.raises(UnsupportedModelError, match="which image belongs to which prompt"):
        first_token(case(name), num_beams=2)


IDS = torch.tensor([[9, 9, 1], [9, 1, 1]])


def repeated(*, ids=IDS, **given):
    return repeated_media(ids, ids == 9, 2, given)


def test_images_of_one_shape_are_distinguished_by_their_tokens():
    pixels = torch.arange(3)
    found = repeated(pixel_values=pixels, high_res_pixel_values=-pixels)
    assert found["pixel_values"].tolist() == [0, 1, 0, 1, 2, 2]
    assert found["high_res_pixel_values"].tolist() == [0, -1, 0, -1, -2, -2]


def test_indistinguishable_images_are_refused():
    sizes = torch.tensor([[2, 2], [2, 2], [2, 4]])
    for given in ({"image_sizes": sizes}, {"tiles": torch.arange(5)}, {"image_token_pooling": sizes}):
        with pytest.raises(UnsupportedModelError, match="which image belongs to which prompt"):
            repeated(pixel_values=torch.arange(3), **given)
    same = repeated(pixel_values=torch.arange(3), image_sizes=sizes[:1].expand(3, 2))
    assert same["pixel_values"].tolist() == [0, 1, 0, 1, 2, 2]
    one_each = repeated(pixel_values=torch.arange(2), image_sizes=sizes[1:])
    assert one_each["image_sizes"].tolist() == [[2, 2], [2, 2], [2, 4], [2, 4]]


def test_pixels_that_come_by_prompt_are_left_to_generate():
    pixels = torch.zeros(2, 2, 3, 4, 4)
    assert repeated(pixel_values=pixels, pixel_attention_mask=pixels[:, :, 0]) == {}
    assert repeated(pixel_values=pixels, aspect_ratio_ids=torch.ones(2, 2)) == {}


# What a user may get wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda gaze: gaze.tokens({}), "takes what the processor returned, with input_ids"),
        (lambda gaze: gaze.tokens({"input_ids": [[1, 2]]}), "as a tensor of a batch.*got list"),
        (lambda gaze: gaze.tokens({"input_ids": torch.tensor([1, 2])}), r"\[B, L\]\), got \[2\]"),
        (lambda gaze: gaze.using(tokens=[[1]]).__enter__(), "tokens is a TokenMap.*got list"),
        (lambda gaze: gaze.recording(tokens=[[1]]).__enter__(), "tokens is a TokenMap.*got list"),
        (lambda gaze: gaze.inputs([None], None), "give a text, or a list of texts"),
        (lambda gaze: gaze.inputs(3, ["Why?"]), "images are a list with an entry per question.*got int"),
        (lambda gaze: gaze.inputs([3], ["Why?"]), "an image is a PIL image, a path, the bytes.*got int"),
        (lambda gaze: TokenMap.from_roles([[1], [1, 2]]), "rows of one length"),
        (lambda gaze: TokenMap.from_roles([[1, 99]]), "0 to 6; got 99"),
        (lambda gaze: TokenMap.from_roles([[1]]).image_cells(3), "no sample 3 in a batch of 1"),
    ],
)
def test_messages_for_wrong_inputs(wrong, message):
    with pytest.raises(RegazeError, match=message):
        wrong(case("llava").gaze)


def test_records_that_are_not_there(tmp_path):
    found = case("llava")
    with found.gaze.recording() as record:
        logits_of(found.model, found.inputs(0), tokens=1)
    with pytest.raises(RecordingError, match="no trace 3: the record has 1"):
        record[3]
    with pytest.raises(RecordingError, match="cannot write the record"):
        record.save(tmp_path / "nowhere" / "record.safetensors")
    with pytest.raises(InputError, match="cannot be written: No such file"):
        record_page(record).save(tmp_path / "nowhere" / "page.html")
    page = record_page(record)
    assert page.save(tmp_path / "page.html").read_text(encoding="utf-8") == page.html
