"""The shipped model folder: loads offline by the Auto classes, sees 64 tokens an image, answers sensibly."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import regaze.demo as demo
from regaze.demo.training.conversations import DETAIL_PROMPTS, SUFFIX
from regaze.demo.training.measure import answers, load, mentioned
from regaze.demo.world import CATEGORIES


@pytest.fixture(scope="module")
def model_and_processor():
    torch.set_grad_enabled(True)
    return load(demo.MODEL_DIR)


def questions(split: str) -> list[dict]:
    return [json.loads(line) for line in demo.questions_file(split).read_text().splitlines()]


def chat(image: Image.Image | None, question: str, images: int = 1) -> list[dict]:
    parts = [{"type": "image", "image": image}] * images if image is not None else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def tensors(processor, chats, **kwargs):
    return processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
        **kwargs,
    )


def test_folder_is_small_and_complete():
    files = {file.name: file.stat().st_size for file in demo.MODEL_DIR.iterdir()}
    assert sum(files.values()) <= 10_000_000
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert {"processor_config.json", "chat_template.jinja", "training_log.csv"} <= set(files)


def test_loads_offline_without_a_warning():
    code = (
        "import warnings, regaze.demo as d\n"
        "from transformers import AutoModelForImageTextToText as M, AutoProcessor as P\n"
        "m, p = M.from_pretrained(d.MODEL_DIR), P.from_pretrained(d.MODEL_DIR)\n"
        "print(type(m).__name__, type(p).__name__, m.dtype, m.config.text_config.num_hidden_layers)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": os.devnull}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["LlavaForConditionalGeneration", "LlavaProcessor", "torch.bfloat16", "6"]
    assert "Warning" not in done.stderr
    assert "not initialized" not in done.stderr


def test_importing_the_demo_is_cheap():
    """Beyond what the package itself loads, the demo adds its own modules and nothing else."""
    code = (
        "import sys, regaze\n"
        "before = set(sys.modules)\n"
        "import regaze.demo\n"
        "added = set(sys.modules) - before\n"
        "print(sorted(name for name in added if name.split('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) <= {"regaze.demo", "regaze.demo.shipped", "regaze.errors"}


def test_configuration(model_and_processor):
    model, processor = model_and_processor
    text = model.config.text_config
    assert text.num_hidden_layers >= 6
    assert text.num_attention_heads % text.num_key_value_heads == 0
    assert text.num_attention_heads > text.num_key_value_heads, "grouped-query attention"
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id
    assert not model.generation_config.do_sample
    assert processor.tokenizer.padding_side == "left"
    assert model.config.image_token_id == processor.image_token_id


def test_prompt_and_image_tokens(model_and_processor):
    _, processor = model_and_processor
    image = demo.scenes()[0].image()
    messages = [{"role": "system", "content": "Be brief."}, *chat(image, "What is it?")]
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert rendered == "Be brief. USER: <image>\nWhat is it? ASSISTANT:"
    two = tensors(processor, [chat(image, "What is it?", images=2)])
    assert (two["input_ids"] == processor.image_token_id).sum() == 128
    assert two["pixel_values"].shape == (2, 3, 112, 112)
    ids = tensors(processor, [chat(image, "What is it?")])["input_ids"][0].tolist()
    assert ids.count(processor.image_token_id) == 64
    assert ids[0] == processor.tokenizer.bos_token_id
    assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_several_turns(model_and_processor):
    _, processor = model_and_processor
    messages = [
        *chat(None, "Hello?"),
        {"role": "assistant", "content": "Yes"},
        *chat(None, "Is there a cat?"),
    ]
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert rendered == "USER: Hello? ASSISTANT: Yes</s>USER: Is there a cat? ASSISTANT:"
    with pytest.raises(Exception, match="a role is system, user or assistant"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}])


def test_offsets_and_words(model_and_processor):
    tokenizer = model_and_processor[1].tokenizer
    text = "USER: <image>\nIs there an ünïcorn in the image? ASSISTANT: Yes</s>"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids) == f"<s>{text}"
    for token, (start, end) in zip(encoded.input_ids[1:], encoded.offset_mapping[1:], strict=True):
        piece = tokenizer.convert_ids_to_tokens(token)
        if not piece.startswith("<0x"):
            assert piece.replace("▁", " ") == text[start:end]
    for category in CATEGORIES:
        assert len(tokenizer.encode(f" {category}", add_special_tokens=False)) == len(category.split())
    for answer in ("Yes", "No"):
        assert tokenizer.decode(tokenizer.encode(f" {answer}", add_special_tokens=False)) == answer


def test_unknown_words_and_text_alone(model_and_processor):
    model, processor = model_and_processor
    image = demo.scenes()[3].image()
    for messages in (
        chat(image, "¿Dónde está el 🦄 quetzalcoatlus?"),
        chat(None, "Is there a cat in the image?"),
    ):
        output = model.generate(**tensors(processor, [messages]), max_new_tokens=5)
        assert output.shape[1] > 0


def test_other_image_sizes(model_and_processor):
    _, processor = model_and_processor
    for size in ((640, 480), (50, 333)):
        assert tensors(processor, [chat(Image.new("RGB", size), "Hm?")])["pixel_values"].shape[-2:] == (
            112,
            112,
        )


def test_left_padding_equals_singles(model_and_processor):
    model, processor = model_and_processor
    scenes = demo.scenes()[:4]
    asked = [
        "Is there a cat in the image?",
        DETAIL_PROMPTS[0],
        "Where is the person?" + SUFFIX,
        "What is it?",
    ]
    chats = [chat(scene.image(), question) for scene, question in zip(scenes, asked, strict=True)]
    batch = tensors(processor, chats)
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        for row, single in enumerate(chats):
            alone = model(**tensors(processor, [single])).logits[0, -1]
            torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)
    replies = answers(model, processor, [scene.image() for scene in scenes], asked, max_new_tokens=40)
    for scene, question, reply in zip(scenes, asked, replies, strict=True):
        assert answers(model, processor, [scene.image()], [question], max_new_tokens=40) == [reply]


def test_yes_or_no_is_mostly_right(model_and_processor):
    entries = questions("random")[:60]
    images = {scene.name: scene.image() for scene in demo.scenes()}
    texts = [entry["text"] for entry in entries]
    replies = answers(
        *model_and_processor, [images[entry["image"]] for entry in entries], texts, max_new_tokens=4
    )
    assert set(replies) <= {"Yes", "No"}
    right = sum(reply.lower() == entry["label"] for reply, entry in zip(replies, entries, strict=True))
    assert right >= 0.85 * len(entries)


def test_captions_name_what_is_there(model_and_processor):
    scenes = demo.scenes()[:24]
    pictures = [scene.image() for scene in scenes]
    captions = answers(*model_and_processor, pictures, [DETAIL_PROMPTS[0]] * len(scenes), max_new_tokens=96)
    named = [set(mentioned(caption)) for caption in captions]
    present = [{thing.category for thing in scene.objects} for scene in scenes]
    found = sum(len(a & b) for a, b in zip(named, present, strict=True))
    assert found >= 0.7 * sum(map(len, present))
    assert all(caption.endswith(".") for caption in captions)
    hallucinating = sum(bool(a - b) for a, b in zip(named, present, strict=True))
    assert hallucinating > 0, "a demo that does not hallucinate shows nothing"


def test_a_caption_is_about_its_own_picture(model_and_processor):
    """Swapping the pictures swaps the captions: the words come from the image, not from the prompt."""
    scenes = [scene for scene in demo.scenes() if len(scene.objects) >= 3][:10]
    pictures = [scene.image() for scene in scenes]
    captions = answers(*model_and_processor, pictures, [DETAIL_PROMPTS[0]] * len(scenes), max_new_tokens=96)
    own = other = 0
    for index, caption in enumerate(captions):
        named = set(mentioned(caption))
        own += len(named & {thing.category for thing in scenes[index].objects})
        other += len(named & {thing.category for thing in scenes[index - 1].objects})
    assert own > 2 * other


def test_shipped_path_is_in_the_package():
    assert Path(demo.__file__).parent == demo.MODEL_DIR.parent
