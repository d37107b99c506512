"""Prompts and squares of published runs, as the bundled model's processor makes them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from regaze.errors import InputError
from regaze.eval.reproduction import prompts, recipe
from regaze.eval.reproduction.recipe import Prompt
from regaze.eval.run.loglikelihood import answer_prefix
from regaze.interventions.icd import prefixed
from regaze.toolkit.load import load_without_weights
from regaze.toolkit.prompts.families import MediaInputs
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.wrap import wrap

OPERA = "llava15-7b-pope-opera"
ZOO = "llava15-7b-pope"
FORMATS = [name for name in recipe.names() if recipe.load(name).prompt.format is not None]


@pytest.fixture
def gaze():
    return wrap(*load_without_weights("demo"))


@pytest.fixture(scope="module")
def rendering():
    """A model of the same chat templates as LLaVA-1.5, for tests that only render."""
    return wrap(*load_without_weights("demo"))


@pytest.mark.parametrize("name", FORMATS)
def test_the_template_makes_the_bytes_of_the_example(rendering, name):
    made = recipe.load(name)
    rendering.processor.chat_template = prompts.chat_template(made.prompt)
    example = made.prompt.example
    question = f"{example.question}{made.prompt.suffix or ''}"
    prompt = rendering.reader.render(question, 1)
    assert prompt.text == example.text
    assert prompt.text[slice(*prompt.span)] == question.strip()


def test_one_space_in_place_of_a_newline(gaze):
    assert gaze.reader.render("Is it red?", 1).text == "USER: <image>\nIs it red? ASSISTANT:"
    prompts.prepare(gaze, recipe.load(OPERA))
    assert gaze.reader.render("Is it red?", 1).text == "USER: <image> Is it red? ASSISTANT:"
    assert gaze.reader.render("Is it red?", 0).text == "USER: Is it red? ASSISTANT:"


def test_a_system_message_takes_the_place_of_the_sentence(gaze):
    prompts.prepare(gaze, recipe.load(ZOO))
    assert gaze.reader.render("Is it red?", 1).text.startswith("A chat between a curious user and")
    spoken = gaze.reader.render("Is it red?", 1, "Be brief.").text
    assert spoken == "Be brief. USER: <image>\nIs it red? ASSISTANT:"


def test_earlier_turns_stand_before_the_question(gaze):
    prompts.prepare(gaze, recipe.load(OPERA))
    image, question, answer, why = (
        {"type": "image"},
        *({"type": "text", "text": text} for text in ("Is it red?", "No.", "Why?")),
    )
    turns = [("user", [image, question]), ("assistant", [answer]), ("user", [why])]
    messages = [{"role": role, "content": parts} for role, parts in turns]
    text = gaze.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "USER: <image> Is it red? ASSISTANT: No.</s>USER: Why? ASSISTANT:"
    assert answer_prefix(gaze.processor) == " "


def test_characters_that_templates_have_a_meaning_for():
    odd = Prompt(
        format='{{ "quoted" }} {% x %}\\n <image>\n\t\u00e9{question}\n',
        example=recipe.Example(question="?", text="?"),
    )
    gaze = wrap(*load_without_weights("demo"))
    gaze.processor.chat_template = prompts.chat_template(odd)
    assert gaze.reader.render("Why?", 1).text == '{{ "quoted" }} {% x %}\\n <image>\n\t\u00e9Why?\n'
    assert prompts.compose(odd, "Why?") == '{{ "quoted" }} {% x %}\\n <image>\n\t\u00e9Why?\n'


def test_roles_of_a_prompt_in_a_format(gaze):
    prompts.prepare(gaze, recipe.load(ZOO))
    inputs = gaze.cpu_inputs([Image.new("RGB", (50, 40))], "Is it red?")
    for tokens in (gaze.tokens(inputs), wrap(gaze.model, gaze.processor).tokens(inputs)):  # built, and read
        asked = [
            token
            for token, role in zip(inputs["input_ids"][0].tolist(), tokens.roles[0].tolist(), strict=True)
            if role == Role.QUERY
        ]
        assert gaze.reader.tokenizer.decode(asked).strip() == "Is it red?"


def padded_by_hand(image: Image.Image, size: int) -> np.ndarray:
    """LLaVA's `expand2square` with the mean colour of CLIP, and its resize."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


@pytest.mark.parametrize("shape", [(150, 90), (61, 140), (112, 112)])
def test_pictures_are_padded_as_llava_pads_them(gaze, shape):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8))
    prompts.prepare(gaze, recipe.load(ZOO))
    processor = gaze.processor.image_processor
    pixels = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0])
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    seen = (pixels.transpose(1, 2, 0) * std + mean) * 255
    assert np.abs(seen - padded_by_hand(image, 112)).max() < 0.5


def test_the_middle_of_pictures_is_what_clip_crops(gaze):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 150, 3), dtype=np.uint8))
    before = gaze.processor.image_processor(images=image, return_tensors="np")["pixel_values"]
    prompts.prepare(gaze, recipe.load(OPERA))
    after = gaze.processor.image_processor(images=image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(before, after)


def test_another_image_processor_cannot_pad(gaze):
    gaze.processor.image_processor.do_center_crop = False
    with pytest.raises(InputError, match="image: pad needs an image processor such as CLIP's"):
        prompts.prepare(gaze, recipe.load(ZOO))


def test_a_recipe_of_the_models_own_prompt_changes_nothing(gaze):
    template, processor = gaze.processor.chat_template, gaze.processor.image_processor
    prompts.prepare(gaze, recipe.load("demo-pope"))
    assert gaze.processor.chat_template is template
    assert gaze.processor.image_processor is processor


def test_an_instruction_stands_before_the_question_of_a_format(gaze):
    """ICD's second prompt keeps the system sentence, as its recipe says."""
    made = recipe.load("llava15-7b-pope-icd-sampled")
    prompts.prepare(gaze, made)
    inputs = gaze.cpu_inputs([Image.new("RGB", (50, 40))], "Is it red?")
    ids = inputs["input_ids"][0].tolist()
    sample = gaze.reader.read(ids, MediaInputs(inputs))
    changed, _ = prefixed(ids, sample, "You see a dog.", gaze.reader)
    text = gaze.reader.tokenizer.decode(changed)
    assert text.index(made.prompt.system[:6]) < text.index("You see") < text.index("Is it red")
    assert any("before the question" in each for each in made.differs)
