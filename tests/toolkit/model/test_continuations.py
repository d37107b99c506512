"""Continuations in the cache against fresh forwards, and when an answer is over."""

from __future__ import annotations

import pytest
import torch
from models import llava_processor, picture, small_var, tiny_llama
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from zoo.every import VISION

import regaze
from regaze.errors import BadParameterError, CompositionError, UnsupportedModelError
from regaze.toolkit.model.continuations import Alone, Continuations, read_stop


@pytest.fixture(scope="module")
def text():
    return regaze.wrap(tiny_llama(), llava_processor().tokenizer)


def test_rows_keep_the_positions_of_rotary_embeddings_with_several_axes():
    """Image tokens of Qwen2-VL share positions, which the continuations go on counting from."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {"vocab_size": 60, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 6, "num_key_value_heads": 2, "rope_parameters": rope}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 48, "num_heads": 2, "patch_size": 14}
    special = {"image_token_id": 58, "vision_start_token_id": 57, "vision_end_token_id": 56}
    torch.manual_seed(0)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, video_token_id=59, **special)
    model = Qwen2VLForConditionalGeneration(config).eval()
    media = {"pixel_values": torch.randn(16, 1176), "image_grid_thw": torch.tensor([[1, 4, 4]])}

    def inputs(ids):
        ids = torch.tensor([[5, 57, 58, 58, 58, 58, 56, 7, *ids]])
        return {"input_ids": ids, "mm_token_type_ids": (ids == 58).long(), **media}

    def check(rows, answers):
        full = [model(**inputs(answer), use_cache=False).logits[0, -1] for answer in answers]
        torch.testing.assert_close(rows.logits, torch.stack(full), rtol=0, atol=1e-5)

    with torch.inference_mode():
        rows = Continuations(model, inputs([]))
        rows.select(torch.tensor([0, 0, 0]))
        rows.feed(torch.tensor([[3], [9], [11]]))
        rows.select(torch.tensor([2, 0]))
        rows.feed(torch.tensor([[4], [6]]))
        check(rows, [[11, 4], [3, 6]])
        rows.restart(torch.tensor([[9, 8], [3, 6], [11, 4]]))
        check(rows, [[9, 8], [3, 6], [11, 4]])
        two = {"input_ids": inputs([])["input_ids"].repeat(2, 1), "pixel_values": torch.randn(32, 1176)}
        two |= {"image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
        two |= {"mm_token_type_ids": (two["input_ids"] == 58).long()}
        Continuations(model, two).feed(torch.tensor([[3], [4]]))  # other prompts in between
        rows.feed(torch.tensor([[7], [8], [9]]))
        check(rows, [[9, 8, 7], [3, 6, 8], [11, 4, 9]])


def test_a_cache_that_cannot_be_cut(text):
    with torch.inference_mode():
        rows = Continuations(text.model, text.inputs([None], ["What?"]), "; use OPERA(max_rollbacks=0)")
        rows.feed(torch.tensor([[5]]))
        rows.cache.crop = lambda count: (_ for _ in ()).throw(RuntimeError("sliding window"))
        with pytest.raises(UnsupportedModelError, match="max_rollbacks=0"):
            rows.restart(torch.tensor([[6, 7]]))


def test_a_model_without_a_cache():
    model, processor = next(entry for entry in VISION if entry.name == "blip-2").build()
    inputs = regaze.wrap(model, processor).inputs([picture(1)], ["What?"])
    with pytest.raises(UnsupportedModelError, match=r"^Blip2\w* returns no key-value cache"):
        Continuations(model, inputs)


def test_several_prompts_each_have_a_row(gaze):
    """Prompts of one length about different images, each with its continuation."""
    inputs = gaze.inputs([picture(1), picture(2)], ["What?", "What?"])
    answers = torch.tensor([[5, 6, 7], [5, 9, 8]])
    with torch.inference_mode():
        rows = Continuations(gaze.model, inputs)
        rows.feed(answers[:, :2])
        rows.feed(answers[:, 2:])
        for row, answer in enumerate(answers):
            alone = gaze.inputs([picture(1 + row)], ["What?"])
            ids = torch.cat([alone["input_ids"], answer[None]], 1)
            full = gaze.model(input_ids=ids, pixel_values=alone["pixel_values"]).logits[0, -1]
            torch.testing.assert_close(rows.logits[row], full, rtol=1e-4, atol=1e-4)


def test_when_an_answer_is_over(text):
    stop = read_stop("X", text.model, {})
    assert stop.eos_ids.tolist() == [text.model.generation_config.eos_token_id]
    assert stop.max_new_tokens == 128
    stop = read_stop("X", text.model, {"eos_token_id": [4, 5], "max_new_tokens": 3, "do_sample": False})
    assert stop.eos_ids.tolist() == [4, 5]
    assert stop.max_new_tokens == 3
    assert read_stop("X", text.model, {"eos_token_id": None}).eos_ids.tolist() == []
    for options, message in (
        ({"do_sample": True}, "X takes max_new_tokens, eos_token_id, pad_token_id, a, got do_sample=True"),
        ({"num_beams": 2}, "got num_beams=2; set Y"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ):
        with pytest.raises(BadParameterError, match=message):
            read_stop("X", text.model, options, "a", hint="; set Y")


def test_alone_is_alone(gaze):
    inputs = gaze.inputs([picture(1)], ["What?"])
    with gaze.using(Alone("X")):
        gaze.model(**inputs)
        with gaze.using(small_var()), pytest.raises(CompositionError, match="X runs another number of rows"):
            gaze.model(**inputs)
