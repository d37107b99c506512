"""Training the bed, on a tiny language model with the demo's tokenizer."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from undrawn import scene_of

import regaze
from regaze.bed.assembly import merge_adapter
from regaze.bed.training import adapter_trainer
from regaze.bed.training.adapter import adapter_weights, attach, save_adapter
from regaze.bed.training.adapter_trainer import AdapterTrainer
from regaze.bed.training.log import Log
from regaze.bed.training.own_words import BATCH, DOCUMENT, STARTS, write_texts
from regaze.bed.training.processor import build_config
from regaze.bed.training.recipe import Recipe, Stage
from regaze.bed.training.rows import IGNORED, Collator
from regaze.bed.training.targets import SINK_CELLS, SINK_SCALE, PatchTargets, sink_patches
from regaze.bed.training.vision import Sight, add_coordinates
from regaze.demo.world import CATEGORIES, COLOURS

RECIPE = Recipe(
    rank=4, alpha=8, attention_from=1, mlp_from=2, stages=(Stage(8, 1e-2, noise=0.0), Stage(16, 1e-2))
)
TEXTS = [[9, 8, 7, 6], [20, 30, 40, 50, 60]]


@pytest.fixture(scope="module")
def processor():
    return regaze.load("demo")[1]


def tiny_base(processor) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(processor.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


@pytest.fixture
def trainer_of(processor, monkeypatch):
    """Makes a trainer whose scenes have no pixels and whose tower sees nothing."""
    monkeypatch.setattr(
        adapter_trainer, "render_scene", lambda seed, stream, index: scene_of(*CATEGORIES[index % 60 :][:3])
    )

    def make(seed: int = 0, recipe: Recipe = RECIPE) -> AdapterTrainer:
        blind = lambda pixels: torch.zeros(len(pixels), 64, 32)  # noqa: E731
        return AdapterTrainer(tiny_base(processor), blind, processor, TEXTS, recipe, seed)

    return make


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in adapter_weights(trainer.model).items()}


def test_one_seed_gives_one_adapter_in_one_go_or_resumed(trainer_of, tmp_path, monkeypatch):
    whole, other, stopped = trainer_of(), trainer_of(seed=1), trainer_of()
    for trainer, name in ((whole, "whole"), (other, "other")):
        (tmp_path / name).mkdir()
        trainer.run(tmp_path / name, Log(tmp_path / name / "log.csv"))
    expected = weights_of(whole)
    assert all((weight != 0).any() for weight in expected.values())
    assert any(not torch.equal(weight, expected[name]) for name, weight in weights_of(other).items())

    (tmp_path / "stopped").mkdir()
    monkeypatch.setattr(adapter_trainer, "SAVE_EVERY", 0.0)
    calls = []

    def interrupt(stage):
        if len(calls) == 2:  # in the second stage, which has optimiser states of its own
            raise KeyboardInterrupt
        calls.append(stage)
        return AdapterTrainer._group(stopped, stage)

    stopped._group = interrupt
    with pytest.raises(KeyboardInterrupt):
        stopped.run(tmp_path / "stopped", Log(tmp_path / "stopped" / "log.csv"))
    resumed = trainer_of()
    resumed.load(tmp_path / "stopped" / "state.pt")
    assert (resumed.stage, resumed.step) == (1, 2)
    resumed.run(tmp_path / "stopped", Log(tmp_path / "stopped" / "log.csv"))
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(resumed).items())


def test_it_is_held_to_the_language_model_on_its_own_texts(trainer_of):
    trainer = trainer_of()
    assert trainer._hold() == pytest.approx(0.0, abs=1e-5)  # a new adapter changes nothing
    with torch.no_grad():
        for weight in trainer.parameters:
            weight += 0.1 * torch.randn_like(weight)
    away = []
    for trainer.step in range(60):
        trainer.optimiser.zero_grad()
        away.append(trainer._hold())
        trainer.optimiser.step()
    assert away[0] > 1e-3
    assert sum(away[-2:]) < 0.3 * sum(away[:2])


def test_its_own_texts_end_where_it_ends_them(processor):
    tokenizer = processor.tokenizer
    texts = write_texts(tiny_base(processor), tokenizer, 40, seed=0)
    assert texts == write_texts(tiny_base(processor), tokenizer, 40, seed=0)
    assert texts != write_texts(tiny_base(processor), tokenizer, 40, seed=1)
    assert len(texts) == 40
    documents, chats = texts[:BATCH], texts[BATCH:]
    assert all(1 <= len(text) <= DOCUMENT for text in documents)
    for number, text in enumerate(chats):
        opening = tokenizer.encode(f"<|im_start|>user\n{STARTS[number]}", add_special_tokens=False)
        assert text[: len(opening)] == opening
        assert len(text) > len(opening) + 1


def test_a_log_that_is_gone_on_with_counts_its_seconds_on(tmp_path):
    first = Log(tmp_path / "log.csv")
    first.started -= 500.0
    first.write("sight", 20, 1.0, 0.5, 10, 400.0)
    Log(tmp_path / "log.csv").write("sight", 40, 1.0, 0.5, 20, 401.0)
    *_, last = (tmp_path / "log.csv").read_text().splitlines()
    assert last in {f"sight,40,1.0000,0.5000,20,401,{seconds},nan" for seconds in (500, 501, 502)}


def test_rows_before_a_change_do_not_see_it(trainer_of, processor):
    """A configuration inside another loses its attention implementation, a model with it its mask."""
    trainer = trainer_of()
    build_config(trainer.model.config)
    embeddings = torch.randn(2, 30, 32).bfloat16()
    changed = embeddings.clone()
    changed[:, 20:] = torch.randn(2, 10, 32)
    with torch.no_grad():
        plain, other = (
            trainer.core(inputs_embeds=given, use_cache=False).last_hidden_state
            for given in (embeddings, changed)
        )
    assert torch.equal(plain[:, :20], other[:, :20])
    assert not torch.equal(plain[:, 20:], other[:, 20:])


def test_the_merged_adapter_is_the_trained_one(trainer_of, processor, tmp_path):
    trainer = trainer_of()
    trainer.run(tmp_path, Log(tmp_path / "log.csv"))
    save_adapter(trainer.model, RECIPE, tmp_path / "adapter.safetensors")
    with torch.no_grad():  # as stored, so that rounding is no difference
        for weight in adapter_weights(trainer.model).values():
            weight.copy_(weight.bfloat16())
    merged = tiny_base(processor).float()
    plain = {name: weight.clone() for name, weight in merged.state_dict().items()}
    merge_adapter(merged.model, tmp_path / "adapter.safetensors")
    changed = {name for name, weight in merged.state_dict().items() if not torch.equal(weight, plain[name])}
    attention = {f"model.layers.{i}.self_attn.{n}_proj.weight" for i in (1, 2) for n in "qkvo"}
    assert changed == attention | {f"model.layers.2.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = trainer.model.float()(input_ids=ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)


def test_rows_teach_the_answers_and_nothing_else(processor):
    collate = Collator(processor.tokenizer, 64)
    scene = scene_of("cat", "dog", "cup")
    ids, labels, weights = collate.row(scene, np.random.default_rng(0), 0.0)
    turns = collate.talk(scene, _after_first(0), 0.0)
    answers = [collate.encode(f"{turn.answer}<|im_end|>") for turn in turns]
    assert ids.count(processor.tokenizer.image_token_id) == 64
    taught = [label for label in labels if label != IGNORED]
    assert taught == [token for answer in answers for token in answer]
    assert [token for token, label in zip(ids, labels, strict=True) if label != IGNORED] == taught
    assert sum(weights) == pytest.approx(sum(len(answer) ** 0.5 for answer in answers) / 7.0)
    batch = collate.pad_rows(collate.rows([(0, scene), (1, scene)], 0, 0.0))
    assert batch.ids.shape == batch.labels.shape == batch.weights.shape
    assert batch.length.tolist() == sorted(batch.length.tolist())
    assert (batch.labels[0, int(batch.length[0]) :] == IGNORED).all()


def _after_first(seed):
    """The generator as a row's conversation finds it, after the choice of a system message."""
    rng = np.random.default_rng(seed)
    rng.random()
    return rng


def test_patches_go_to_words_and_sinks(processor):
    embedding = torch.randn(len(processor.tokenizer), 32)
    targets = PatchTargets.of(embedding, processor.tokenizer)
    category, colour = np.full((8, 8), -1), np.full((8, 8), -1)
    category[2, 3], colour[2, 3] = CATEGORIES.index("cup"), list(COLOURS).index("red")
    scene = replace(scene_of(), patch_category=category, patch_colour=colour)
    found = targets([scene])[0].view(8, 8, 32)

    def word(text):
        return embedding[processor.tokenizer.encode(f" {text}", add_special_tokens=False)].mean(0)

    shown = word("cup") + 0.5 * (word("red") - embedding.mean(0)) + 0.8 * targets.places.view(8, 8, 32)[2, 3]
    assert torch.allclose(found[2, 3], shown, atol=1e-5)
    sinks = torch.from_numpy(SINK_CELLS)
    assert int(sinks.sum()) == 9
    assert torch.equal(sink_patches([scene])[0].view(8, 8), sinks & torch.from_numpy(category < 0))
    assert torch.equal(found[sinks], (SINK_SCALE * embedding[0]).expand(9, -1))
    assert torch.allclose(found[~sinks & torch.from_numpy(category < 0)], word("background"))


def test_the_tower_is_shown_where_its_patches_are(processor):
    model, _ = regaze.load("demo")
    tower = model.model.vision_tower
    before = tower.embeddings.position_embedding.weight.clone()
    torch.manual_seed(0)
    add_coordinates(tower)
    added = (tower.embeddings.position_embedding.weight - before).detach()
    assert torch.equal(added[0], torch.zeros(192))  # the class token
    grid = added[1:].view(8, 8, 192)
    assert torch.allclose(grid[0, 0], -grid[7, 7], atol=1e-5)
    assert torch.allclose(grid[0] - grid[7], (grid[0, 0] - grid[7, 0]).expand(8, -1), atol=1e-5)
    assert int(torch.linalg.matrix_rank(added, atol=1e-3)) == 2


def test_a_new_projector_starts_at_the_scale_of_its_targets(processor):
    model, _ = regaze.load("demo")
    projector = torch.nn.ModuleDict(
        {"linear_1": torch.nn.Linear(192, 32), "linear_2": torch.nn.Linear(32, 32)}
    )
    targets = SimpleNamespace(categories=5 + 2 * torch.randn(67, 32))
    pixels = torch.randn(2, 3, 112, 112)
    sight = Sight(model.model.vision_tower, projector)
    torch.manual_seed(0)
    sight.start(targets, pixels)
    with torch.no_grad():
        hidden = projector["linear_1"](sight.features(pixels))
    assert hidden.std().item() == pytest.approx(3**-0.5, rel=0.2)  # as of standardised features
    assert torch.allclose(projector["linear_2"].bias, targets.categories.mean(0))


def test_layers_with_adapters_are_those_of_the_recipe(processor):
    model = attach(tiny_base(processor), RECIPE)
    names = adapter_weights(model)
    assert len(names) == 2 * (2 * 4 + 3)
    assert all(weight.dtype == torch.float32 for weight in names.values())
