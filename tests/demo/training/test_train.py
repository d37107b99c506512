"""The training script, in miniature."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from glyphs import glyphs

from regaze.demo import SceneObject
from regaze.demo.training import render
from regaze.demo.training.batches import IGNORED, Collator
from regaze.demo.training.curves import plot_curves
from regaze.demo.training.measure import load
from regaze.demo.training.recipe import STAGES, DataMix, Recipe, Stage
from regaze.demo.training.train import main, train
from regaze.demo.training.vocabulary import build_processor

TALK = DataMix(noise=1.0, captions=0.3, existence=0.45, text_only=0.2)


__all__ = ["glyphs"]  # a fixture
pytestmark = pytest.mark.usefixtures("glyphs")


def tiny(steps: int) -> Recipe:
    talk = Stage(steps, 4, 1e-3, data=TALK)
    return Recipe(
        vision=Stage(steps, 4, 1e-3),
        projector=Stage(steps, 4, 1e-3),
        language=talk,
        mix=talk,
        describe=talk,
        layers=2,
    )


@pytest.mark.slow
def test_training_is_reproducible_and_writes_a_model(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "other"]
    before = torch.get_rng_state()
    for folder, seed in zip(folders, (5, 5, 6), strict=True):
        train(folder, seed=seed, recipe=tiny(3), precision="fp32", checkpoints=folder / "stages")
    assert torch.equal(before, torch.get_rng_state()), "training touched the caller's generator"
    assert not torch.are_deterministic_algorithms_enabled()
    one, two, other = (load(folder)[0].state_dict() for folder in folders)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    (folders[1] / "stages" / "describe.pt").unlink()
    train(tmp_path / "resumed", seed=5, recipe=tiny(3), precision="fp32", checkpoints=folders[1] / "stages")
    resumed = load(tmp_path / "resumed")[0].state_dict()
    assert all(torch.equal(one[name], resumed[name]) for name in one), "taking up a training changed it"
    with (folders[0] / "training_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == list(STAGES)
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    figure = plot_curves(folders[0] / "training_log.csv")
    assert len(figure.axes) == 2 * len(STAGES)


@pytest.mark.slow
def test_vision_learns(tmp_path):
    """A few dozen steps already bring the loss of the first stage well down."""
    recipe = Recipe(vision=Stage(40, 16, 1e-3), **{name: Stage(1, 4, 1e-3, data=TALK) for name in STAGES[1:]})
    train(tmp_path, recipe=recipe)
    with (tmp_path / "training_log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["stage"] == "vision"]
    assert losses[-1] < 0.9 * losses[0]


def test_command_line_needs_an_output(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--output" in capsys.readouterr().err


def test_rows_are_what_the_chat_template_renders():
    processor = build_processor(112, 14)
    collate = Collator(processor, DataMix(noise=0.0, captions=0.3, existence=0.4, system=1.0), seed=0)
    things = (SceneObject("cat", (2, 2, 30, 30)), SceneObject("dog", (60, 60, 100, 100)))
    nothing = np.full((8, 8), -1)
    scene = render.Rendered("park", things, np.zeros((112, 112, 3), np.uint8), nothing, nothing)
    ids, labels, weights = collate.row(scene, np.random.default_rng(1))
    tokenizer = processor.tokenizer
    text = tokenizer.decode(ids).removeprefix("<s>")
    system, rest = text.split(" USER: ", 1)
    messages: list[dict] = [{"role": "system", "content": system}]
    for turn in rest.removesuffix("</s>").split("</s>USER: "):
        question, answer = turn.split(" ASSISTANT: ")
        parts = [
            {
                "type": "text",
                "text": question.split("\n", 1)[1] if question.startswith("<image>") else question,
            }
        ]
        if question.startswith("<image>"):
            parts.insert(0, {"type": "image"})
        messages += [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    rendered = processor.apply_chat_template(messages).replace("<image>", "<image>" * 64)
    assert tokenizer(rendered)["input_ids"] == ids
    answered = tokenizer.decode([label for label in labels if label != IGNORED])
    assert answered.count("</s>") == len(messages) // 2
    assert all((weight > 0) == (label != IGNORED) for label, weight in zip(labels, weights, strict=True))


def test_batches_pad_on_the_right_and_drop_images_of_text_rows():
    processor = build_processor(112, 14)
    collate = Collator(processor, DataMix(noise=1.0, captions=0.3, existence=0.45, text_only=0.5), seed=0)
    scenes = [render.render_scene(0, "train", index) for index in range(12)]
    batch = collate(0, scenes)
    seen = (batch["input_ids"] == processor.image_token_id).sum(1)
    assert set(seen.tolist()) == {0, 64}
    assert len(batch["pixel_values"]) == (seen == 64).sum()
    assert (batch["input_ids"][:, 0] == processor.tokenizer.bos_token_id).all()
    padding = batch["input_ids"] == processor.tokenizer.pad_token_id
    assert (batch["labels"][padding] == IGNORED).all()
    made = processor.image_processor([scenes[0].image()], return_tensors="pt")["pixel_values"]
    drawn = Collator(processor, DataMix(1.0, 0.3, 0.4), seed=0)(0, scenes[:1])["pixel_values"]
    torch.testing.assert_close(drawn, made, rtol=1e-5, atol=1e-5)
