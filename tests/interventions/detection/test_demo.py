"""The detector that knows the truth about the demo's scenes."""

from __future__ import annotations

import numpy as np
import pytest
from models import picture
from PIL import Image

import regaze.demo
from regaze.errors import InputError
from regaze.interventions.detection import DEMO, DemoDetector, detect, find_detector


@pytest.mark.parametrize("number", [0, 17, 119])
def test_it_knows_what_a_scene_was_drawn_from(number):
    scene = regaze.demo.scenes()[number]
    found = detect(find_detector(DEMO, "cpu"), scene.image())
    assert found.labels == tuple(thing.category for thing in scene.objects)
    assert found.boxes == tuple(thing.box for thing in scene.objects)
    assert set(found.scores) == {1.0}
    last = scene.objects[-1]
    some = detect(DemoDetector(), scene.image(), [last.category.upper(), "no such thing"])
    assert (some.labels, some.boxes) == ((last.category,), (last.box,))
    assert {thing.category for thing in scene.objects} <= set(DemoDetector.names)


def test_scenes_are_known_after_rounding_and_others_are_not():
    scene = regaze.demo.scenes()[3]
    pixels = np.asarray(scene.image()).astype(int)
    noise = np.random.default_rng(0).integers(-1, 2, pixels.shape)
    rounded = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    assert detect(DemoDetector(), rounded) == detect(DemoDetector(), scene.image())
    for image, size in ((picture(1), "112 x 112"), (scene.image().resize((64, 50)), "64 x 50")):
        with pytest.raises(InputError, match=f"the 120 scenes .* image of {size} pixels is none of them"):
            detect(DemoDetector(), image)
