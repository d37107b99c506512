"""The whole tool on the shipped model: maps point at the asked-for object, and VAR acts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import logits_of

import regaze
from regaze import VAR, Role
from regaze.demo import MODEL_DIR, scenes
from regaze.toolkit import plot
from regaze.toolkit.analysis.sink_profile import find_sink_dimensions, published_sinks

pytestmark = pytest.mark.skipif(
    not (MODEL_DIR / "config.json").exists(), reason="the demo model is not there"
)


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(*regaze.load("demo"))


@pytest.fixture(scope="module")
def asked():
    """Scenes with a category that occurs once in them, and that object."""
    found = []
    for scene in scenes()[:60]:
        names = [thing.category for thing in scene.objects]
        single = next((thing for thing in scene.objects if names.count(thing.category) == 1), None)
        if single is not None:
            found.append((scene, single))
    return found


def hits(peak: tuple[int, int], box: tuple[int, int, int, int]) -> bool:
    """Whether the centre of a cell (row, column) of the 8 x 8 grid lies in a box, within half a cell."""
    y, x = (14 * index + 7 for index in peak)
    x0, y0, x1, y1 = box
    return x0 - 7 <= x <= x1 + 7 and y0 - 7 <= y <= y1 + 7


def test_the_asked_for_word_looks_at_its_object(gaze, asked):
    questions = [f"Is there a {thing.category} in the image?" for _, thing in asked]
    with gaze.recording(masses=False, slices="image", rows="text", layers=[0]) as record:
        gaze.ask([scene.image() for scene, _ in asked], questions, batch_size=len(asked), max_new_tokens=1)
    peaks = []
    for sample, (_, thing) in enumerate(asked):
        grid = plot.answer_map(record[0], token=thing.category, layers=[0], sample=sample)
        peaks.append(np.unravel_index(grid.argmax(), grid.shape))
    boxes = [thing.box for _, thing in asked]
    found = np.mean([hits(peak, box) for peak, box in zip(peaks, boxes, strict=True)])
    chance = np.mean([hits(peak, box) for peak, box in zip(peaks, boxes[1:] + boxes[:1], strict=True)])
    assert found >= 0.85
    assert chance <= 0.5


def test_the_configuration_knows_the_sinks(gaze):
    """What training wrote into the configuration is what the finder finds in the shipped weights."""
    known = published_sinks(gaze.model.config.text_config)
    assert known == find_sink_dimensions(gaze.model, gaze.processor, tau=known.tau)


def test_var_moves_attention_from_the_first_token_to_the_image(gaze, asked):
    inputs = gaze.inputs([scene.image() for scene, _ in asked[:8]], ["Describe this image."] * 8)
    plain = logits_of(gaze.model, inputs)
    with gaze.using(VAR(min_image_mass=0.0, rho=0.0)):
        assert not torch.allclose(plain, logits_of(gaze.model, inputs), atol=1e-4)
        with gaze.recording(rows="text") as before:
            gaze.model(**inputs)
        with gaze.recording(rows="text", edited=True) as after:
            gaze.model(**inputs)
    moved = (after[0].masses - before[0].masses)[2:5]
    active = after[0].row_active[None, :, None].expand(moved.shape[:-1])
    assert moved[..., Role.IMAGE][active].min() > -1e-6
    assert moved[..., Role.SYSTEM][active].max() < 1e-6
    assert moved[..., Role.IMAGE][active].max() > 0.01
    assert torch.equal(plain, logits_of(gaze.model, inputs))
