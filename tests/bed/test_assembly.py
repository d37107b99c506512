"""The bed by its name: what it is put together from, and what ships of it."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_bed import pretend, write_base, write_bed
from typer.testing import CliRunner

import regaze
from regaze.bed import assembly
from regaze.bed import base as bases
from regaze.bed.assembly import merge_adapter
from regaze.bed.scenes import scenes
from regaze.cli import app
from regaze.errors import BadParameterError, InputError, ModelNotFoundError, UnsupportedModelError
from regaze.eval.run.fingerprint import describe_model, model_fingerprint
from regaze.interventions.fitting.directions import short_name
from regaze.serving.frontend.offline import OfflineEngine
from regaze.serving.frontend.server import run_server
from regaze.toolkit.load import load_without_weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(base, weights) of a tiny bed, which "bed" means in this module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        yield pretend(patch, tmp_path_factory.mktemp("tiny"))


def test_the_whole_is_the_base_with_the_adapter_the_tower_and_the_projector(tiny):
    base, weights = tiny
    model, processor = regaze.load("bed")
    expected = bases.load_base(base, dtype=torch.float32)
    merge_adapter(expected.model, weights / "adapter.safetensors")
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(model.model.language_model.state_dict()[name], weight), name
    sight = assembly.load_file(weights / "sight.safetensors")
    for part, module in {
        "tower": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
    }.items():
        for name, weight in module.state_dict().items():
            assert torch.equal(weight, sight[f"{part}.{name}"].float()), name
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert (model.dtype, model.training, model.config.name_or_path) == (torch.float32, False, "bed")
    assert short_name(model) == "bed"
    assert regaze.wrap(model, processor).ask(scenes()[0].image(), "Is there a dog?", max_new_tokens=2)


def test_arguments_of_from_pretrained_reach_the_whole(tiny):
    arguments = {"dtype": torch.bfloat16, "attn_implementation": "eager", "device_map": {"": "cpu"}}
    model, _ = regaze.load("bed", local_files_only=True, trust_remote_code=True, **arguments)
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.bfloat16}
    assert model.model.language_model.config._attn_implementation == "eager"
    with pytest.raises(BadParameterError, match=r"cannot load model 'bed' with colour: .*'colour'"):
        regaze.load("bed", colour="red")
    with pytest.raises(BadParameterError, match=r"cannot load model 'demo' with base: .*'base'"):
        regaze.load("demo", base="folder")


def test_another_base_and_another_training_by_argument(tiny, tmp_path):
    base, _ = tiny
    plain, processor = regaze.load("bed")
    other = write_base(tmp_path / "base", len(processor.tokenizer), seed=5)
    assert regaze.load("bed", base=other)[0].config.text_config.bed_base != plain.config.text_config.bed_base
    training = write_bed(tmp_path / "bed", base, processor, seed=5)
    trained, _ = regaze.load("bed", weights=training)
    assert trained.config.text_config.bed_base == plain.config.text_config.bed_base
    assert trained.config.name_or_path == str(training)
    query = "model.language_model.layers.2.self_attn.q_proj.weight"
    assert not torch.equal(trained.state_dict()[query], plain.state_dict()[query])


def test_the_base_is_part_of_the_fingerprint(tiny):
    base, _ = tiny
    model, processor = regaze.load("bed")
    digest = bases.weights_hash(bases.load_base(base, dtype=torch.float32).state_dict())
    assert model.config.text_config.bed_base == digest
    gaze = regaze.wrap(model, processor)
    before = model_fingerprint(gaze, "bed")
    assert describe_model(gaze, "bed")["base"] == digest
    assert model_fingerprint(regaze.wrap(*regaze.load("bed")), "bed") == before
    model.config.text_config.bed_base = "another"
    assert model_fingerprint(gaze, "bed") != before


def test_a_base_that_is_not_there_is_said_with_all_three_ways(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("REGAZE_BED_BASE")
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    ways = r"`regaze bed fetch` .*base=FOLDER .*base=HuggingFaceTB/SmolLM2-135M-Instruct"
    with pytest.raises(ModelNotFoundError, match=f"cannot load the bed's base .*{ways}"):
        regaze.load("bed", local_files_only=True)
    with pytest.raises(InputError, match=f"base nowhere: there is no such folder; .*{ways}"):
        regaze.load("bed", base="nowhere")


def test_weights_that_are_not_there_are_named(tiny, tmp_path):
    with pytest.raises(InputError, match=r"has no sight\.safetensors: train it"):
        regaze.load("bed", weights=tmp_path)


def test_without_weights_no_base_is_needed(tiny, monkeypatch):
    monkeypatch.setenv("REGAZE_BED_BASE", "/nowhere")
    model, processor = load_without_weights("bed")
    assert model.device.type == "meta"
    assert processor.tokenizer.image_token_id == model.config.image_token_index
    result = CliRunner().invoke(app, ["inspect", "Bed", "--image", "bed/scene_000", "--prompt", "Is it?"])
    assert result.exit_code == 0, result.output
    assert "8 x 8 cells" in result.output


def test_commands_take_it_with_its_arguments(tiny, tmp_path, monkeypatch):
    base, weights = tiny
    monkeypatch.setenv("REGAZE_BED_BASE", "/nowhere")
    monkeypatch.chdir(tmp_path)
    run = ["evaluate", "pope", "--model", "bed", "--split", "random", "--limit", "2", "--device", "cpu"]
    result = CliRunner().invoke(app, [*run, "--json"])
    assert result.exit_code == 2
    assert "base /nowhere: there is no such folder" in result.stderr
    arguments = ["--model-arg", f"base={base}", "--model-arg", f"weights={weights}"]
    result = CliRunner().invoke(app, [*run, *arguments, "--output", "run"])
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["model"]["name"] == "bed"
    assert results["model"]["base"] == regaze.load("bed", base=base)[0].config.text_config.bed_base


def test_the_command_says_what_is_there(tiny, monkeypatch):
    base, weights = tiny
    result = CliRunner().invoke(app, ["bed"])
    assert result.exit_code == 0, result.output
    assert f"weights {weights}\nbase {base}\nhash " in result.output
    monkeypatch.setattr(assembly, "MODEL_DIR", base)
    assert f"weights {base} has no sight.safetensors and no adapter.safetensors" in (
        CliRunner().invoke(app, ["bed"]).output
    )


def test_vllm_does_not_run_it():
    for start in (lambda: OfflineEngine("bed"), lambda: run_server("bed", None, ())):
        with pytest.raises(UnsupportedModelError, match="the bed is put together when it is loaded"):
            start()
