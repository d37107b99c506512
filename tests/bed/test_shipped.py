"""What ships of the bed, and whether it looks where its base is at hand."""

from __future__ import annotations

import pytest

import regaze
from regaze.bed import assembly
from regaze.bed import base as bases
from regaze.bed.assembly import MODEL_DIR
from regaze.bed.scenes import scenes
from regaze.demo.phrases import existence_question
from regaze.errors import ModelNotFoundError
from regaze.toolkit.load import load_without_weights


def test_what_ships_is_small_and_describes_itself():
    files = {path.name: path.stat().st_size for path in MODEL_DIR.iterdir()}
    assert sum(files.values()) < 15 * 2**20
    assert {"README.md", "config.json", "chat_template.jinja", "processor_config.json"} <= set(files)
    model, processor = load_without_weights("bed")
    text_config = model.config.text_config
    assert (text_config.hidden_size, text_config.num_hidden_layers, text_config.vocab_size) == bases.SHAPE
    assert (text_config.sink_dimensions, text_config.sink_tau) == ([507], 20.0)
    assert text_config.name_or_path == bases.HUB_ID  # no path of the machine that trained it
    assert processor.tokenizer.image_token_id == model.config.image_token_index
    with assembly.safe_open(MODEL_DIR / "adapter.safetensors", framework="pt") as file:
        assert float(file.metadata()["scale"]) > 0


def test_it_is_loaded_by_its_name_and_looks():
    try:
        model, processor = regaze.load("bed", local_files_only=True)
    except ModelNotFoundError:
        pytest.skip("the bed's base is not at hand: regaze bed fetch")
    gaze = regaze.wrap(model, processor)
    for scene in scenes()[:3]:
        there = scene.objects[0].category
        question = existence_question(there)
        assert gaze.ask(scene.image(), question, max_new_tokens=4) == ["Yes"], scene.name
