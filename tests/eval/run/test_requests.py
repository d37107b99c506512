"""The keys of answers: what changes an answer changes its key."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import llava_processor, tiny_llava
from standins import Blind, write_pope

import regaze
from regaze.eval.run import results
from regaze.eval.run.fingerprint import describe_model, model_fingerprint
from regaze.eval.run.requests import Condition, ImageHashes, build_requests


def keys(pope, **change):
    given = {"model": "abc", "method": Blind(), "generate_kwargs": {"max_new_tokens": 3}, "seed": 0, **change}
    return list(build_requests(pope, Condition(**given), ImageHashes()).requests)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "abd"},
        {"method": None},
        {"method": Blind(0.999)},
        {"generate_kwargs": {"max_new_tokens": 4}},
        {"generate_kwargs": {"max_new_tokens": 3, "do_sample": True}},
    ],
)
def test_the_key_of_a_request_depends_on_model_method_and_options(tmp_path, change):
    pope = write_pope(tmp_path)
    assert keys(pope) == keys(pope)
    assert len(set(keys(pope))) == 5
    assert not set(keys(pope)) & set(keys(pope, **change))


def test_the_seed_counts_where_answers_are_drawn(tmp_path):
    pope = write_pope(tmp_path)
    drawn = {"max_new_tokens": 3, "do_sample": True}
    assert keys(pope, seed=1) == keys(pope, seed=2)
    assert not set(keys(pope, seed=1, generate_kwargs=drawn)) & set(keys(pope, seed=2, generate_kwargs=drawn))


def test_the_order_of_options_and_the_name_of_a_file_do_not_count(tmp_path):
    pope = write_pope(tmp_path)
    a = keys(pope, generate_kwargs={"max_new_tokens": 3, "top_k": 1})
    assert a == keys(pope, generate_kwargs={"top_k": 1, "max_new_tokens": 3})
    before = keys(pope)
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other/elsewhere.png"
    moved.write_bytes(pope.items[0].image.read_bytes())
    object.__setattr__(pope.items[0], "image", moved)
    assert keys(pope) == before


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(tiny_llava(), llava_processor())


def test_the_fingerprint_is_of_the_model_in_memory(gaze):
    before = model_fingerprint(gaze, "a name")
    assert before == model_fingerprint(regaze.wrap(tiny_llava(), llava_processor()), "another name")
    gaze.ask(["regaze/demo/data/images/scene_000.webp"], ["What?"], max_new_tokens=2)
    assert model_fingerprint(gaze, "a name") == before  # padding leaves traces in a tokenizer
    described = describe_model(gaze, "a name")
    assert described["fingerprint"] == before
    assert (described["dtype"], described["devices"]) == ("float32", ["cpu"])


@pytest.mark.parametrize(
    "what", ["one bit", "order", "half precision", "a setting", "the template", "attention"]
)
def test_any_change_of_the_model_is_another_model(gaze, what):
    before = model_fingerprint(gaze, "m")
    model, processor = copy.deepcopy(gaze.model), copy.deepcopy(gaze.processor)
    weight = model.get_decoder().layers[3].mlp.up_proj.weight.data
    if what == "one bit":
        weight.view(-1)[7].view(torch.int32).bitwise_xor_(1)
    elif what == "order":
        weight.view(-1)[:2] = weight.view(-1)[:2].flip(0)
    elif what == "half precision":
        model = model.half()
    elif what == "a setting":
        model.generation_config.repetition_penalty = 1.3
    elif what == "attention":
        model.set_attn_implementation("eager")
    else:
        processor.chat_template += " "
    assert model_fingerprint(regaze.wrap(model, processor), "m") != before


def test_a_configuration_may_hold_numbers_that_json_lacks(gaze):
    found = set()
    for value in (float("nan"), float("inf"), 1.0):
        model = tiny_llava()
        model.config.damaged = value
        found.add(model_fingerprint(regaze.wrap(model, llava_processor()), "m"))
    assert len(found) == 3


def test_of_a_stand_in_there_is_only_the_name():
    assert model_fingerprint(SimpleNamespace(), "a") != model_fingerprint(SimpleNamespace(), "b")


def test_images_that_are_no_files_are_named(tmp_path):
    pope = write_pope(tmp_path)
    object.__setattr__(pope.items[0], "image", Path("/dev/zero"))
    made = build_requests(pope, Condition("m", None, {}, 0), ImageHashes())
    assert made.unreadable[0].startswith("image /dev/zero cannot be read: it is a device")


@pytest.mark.parametrize("name", ["PIL", "tokenizers", "torch", "transformers", "regaze"])
def test_another_version_of_a_library_is_another_request(tmp_path, monkeypatch, name):
    pope = write_pope(tmp_path)
    before = keys(pope)
    monkeypatch.setattr(getattr(results, name), "__version__", "0.0.0")  # the module that is asked
    assert not set(keys(pope)) & set(before)


def test_another_attention_backend_is_another_request(tmp_path, monkeypatch):
    pope = write_pope(tmp_path)
    monkeypatch.delenv("REGAZE_BACKEND", raising=False)
    before = keys(pope)
    monkeypatch.setenv("REGAZE_BACKEND", "auto")
    assert keys(pope) == before
    monkeypatch.setenv("REGAZE_BACKEND", "reference")
    assert not set(keys(pope)) & set(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's rows are not Numba's")
def test_numba_which_acts_by_itself_is_part_of_a_request(tmp_path, monkeypatch):
    pytest.importorskip("numba")
    pope = write_pope(tmp_path)
    monkeypatch.delenv("REGAZE_BACKEND", raising=False)
    before = keys(pope)
    monkeypatch.setattr(results, "version", lambda name: "0.0.0")
    other = keys(pope)
    assert not set(other) & set(before)
    monkeypatch.delitem(results.BACKENDS, "numba")
    assert not set(keys(pope)) & {*before, *other}
