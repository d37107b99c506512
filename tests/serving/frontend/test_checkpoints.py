"""The demo model as vLLM reads it, and that its plain answers are those of transformers."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from served import by_engine

from regaze.serving.frontend.checkpoints import known_name


def test_names_of_weights():
    tower = "encoder.layers.0.mlp.fc1.weight"
    names = {
        f"model.vision_tower.{tower}": f"vision_tower.vision_model.{tower}",
        "model.language_model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
        "language_model.model.norm.weight": "language_model.model.norm.weight",
        "language_model.lm_head.weight": "language_model.lm_head.weight",
        "model.multi_modal_projector.linear_1.weight": "multi_modal_projector.linear_1.weight",
    }
    assert {name: known_name(name) for name in names} == names


def test_the_folder_has_all_weights(demo_folder, asked):
    exported = load_file(demo_folder / "model.safetensors")
    own = sum(tensor.numel() for tensor in {t.data_ptr(): t for t in asked.gaze.model.parameters()}.values())
    assert sum(tensor.numel() for tensor in exported.values()) >= own
    assert (demo_folder / "config.json").is_file()


@pytest.mark.vllm
def test_plain_answers_are_those_of_transformers(engine, asked):
    assert by_engine(engine, asked, [None] * 12) == asked.by_transformers()
