"""From maps to objects: regions, points and boxes by hand; segmenters; crops, questions and instances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import picture
from PIL import Image
from segmenters import Discs, tiny_sam, tiny_sam2

import regaze
from regaze.demo import scenes
from regaze.errors import BadParameterError, InputError, ModelNotFoundError
from regaze.toolkit.analysis import Flow, find_objects, load_segmenter, main_region, pixel_map, prompt_points
from regaze.toolkit.analysis.answers import token_map_of
from regaze.toolkit.analysis.objects.regions import bounding_box, contrast, overlap
from regaze.toolkit.prompts.geometry import Geometry
from regaze.toolkit.prompts.token_map import View

HEAT = torch.tensor(
    [
        [0.0, 0.2, 0.0, 0.9, 0.0],
        [0.6, 0.8, 0.0, 0.0, 0.0],
        [0.5, 0.4, 0.1, 1.0, 0.0],
    ],
    dtype=torch.float64,
)


def test_the_main_region_is_the_largest_not_the_strongest():
    region = main_region(HEAT, 0.5)
    assert region.nonzero().tolist() == [[1, 0], [1, 1], [2, 0]]
    assert bounding_box(region) == (0.0, 1.0, 2.0, 3.0)
    inside, outside = (0.6 + 0.8 + 0.5) / 3, (0.2 + 0.9 + 0.4 + 0.1 + 1.0) / 12
    assert contrast(HEAT, region) == pytest.approx(1 - outside / inside)
    assert main_region(HEAT, 1.0).nonzero().tolist() == [[2, 3]]
    assert main_region(HEAT, 0.5, top=1.7).nonzero().tolist() == [[0, 3]]  # 0.85 and more: two of one pixel
    for nowhere in (main_region(0 * HEAT, 0.5), main_region(HEAT, 0.5, top=3.0)):
        assert not nowhere.any()
    assert contrast(torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool)) == 0.0
    for wrong in (0.0, 1.5):
        with pytest.raises(BadParameterError, match="threshold"):
            main_region(HEAT, wrong)


def test_points_are_the_strongest_inside_and_the_weakest_outside():
    points, labels = prompt_points(HEAT, main_region(HEAT, 0.5))
    assert points.tolist() == [[1.5, 1.5], [0.5, 0.5]]
    assert labels.tolist() == [1, 0]
    points, labels = prompt_points(HEAT, main_region(HEAT, 0.5), pairs=2)
    assert points.tolist() == [[1.5, 1.5], [0.5, 1.5], [0.5, 0.5], [2.5, 0.5]]
    assert labels.tolist() == [1, 1, 0, 0]
    alone = torch.zeros(3, 5, dtype=torch.bool)
    alone[2, 3] = True
    assert prompt_points(HEAT, alone, pairs=3)[1].tolist() == [1, 0, 0, 0]  # one pixel holds one point


def test_overlap():
    assert overlap((0, 0, 4, 2), (2, 0, 6, 2)) == pytest.approx(4 / 12)
    assert overlap((0, 0, 4, 2), (4, 0, 6, 2)) == 0.0
    assert overlap((1, 1, 3, 4), (1, 1, 3, 4)) == 1.0


def flow_of(gaze, inputs, cells) -> Flow:
    """One row whose flow to the image is `cells` [rows, columns]."""
    tokens = token_map_of(gaze, inputs)
    return Flow(cells.flatten()[None, None].float(), torch.zeros(1, 1), tokens.image_cells()[None], tokens)


def test_a_map_over_pixels(gaze):
    inputs, cells = gaze.inputs(picture(1, 90, 60), "What?"), torch.rand(8, 8)
    flow = flow_of(gaze, inputs, cells)
    (view,) = flow.tokens.views[0]
    found = pixel_map(flow, (90, 60))
    assert found.shape == (60, 90)
    if view.box == (0.0, 0.0, 1.0, 1.0):
        expected = Geometry.squash((90, 60), (112, 112)).to_pixels(cells)
        torch.testing.assert_close(found, expected)
    half = replace(flow.tokens, views=((replace(view, box=(0.5, 0.0, 1.0, 1.0)),),))
    right = pixel_map(replace(flow, tokens=half), (90, 60))
    assert not right[:, :45].any()
    torch.testing.assert_close(
        right[:, 45:], Geometry.squash((45, 60), (112, 112)).to_pixels(cells), rtol=1e-6, atol=1e-9
    )
    nowhere = replace(flow.tokens, views=((View((8, 8), box=None),),))
    with pytest.raises(InputError, match="not known which part"):
        pixel_map(replace(flow, tokens=nowhere), (90, 60))


def brightness(gaze, inputs, *, rows):
    """A map that looks at what is bright, in every row."""
    pixels = inputs["pixel_values"].mean((0, 1)).unfold(0, 14, 14).unfold(1, 14, 14).mean((2, 3))
    flow = flow_of(gaze, inputs, (pixels - pixels.min()).clamp_min(0))
    return replace(flow, values=flow.values.expand(-1, len(rows), -1))


def squares(*boxes, size=(112, 112)) -> Image.Image:
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for left, upper, right, lower, value in boxes:
        pixels[upper:lower, left:right] = value
    return Image.fromarray(pixels)


ONE = squares((28, 56, 70, 98, 255))


def test_the_box_of_a_bright_square(gaze):
    """The map is bilinear between cells, so that half of its top lies on the square's edge."""
    (found,) = find_objects(gaze, ONE, ["dog"], maps=brightness)
    assert (found.word, found.question) == ("dog", "Is there a {} in the image?")
    assert found.box == pytest.approx((28, 56, 70, 98), abs=1)
    assert found.mask.shape == (112, 112)
    assert bounding_box(found.mask) == found.box
    assert 0.9 < found.score <= 1


def test_crops_find_the_same_place_once(gaze):
    """The square lies in all of the four crops; nothing is left out only if all boxes may overlap."""
    image = squares((35, 42, 63, 70, 255))
    for scales in ([0.75], [1, 0.75]):
        (found,) = find_objects(gaze, image, ["dog"], scales=scales, maps=brightness)
        assert overlap(found.box, (35, 42, 63, 70)) > 0.75
    several = find_objects(gaze, image, ["dog"], scales=[1, 0.75], maps=brightness, suppress=1.0)
    assert len(several) == 5
    assert [each.score for each in several] == sorted((each.score for each in several), reverse=True)
    for each in several:
        assert overlap(each.box, (35, 42, 63, 70)) > 0.75
        assert each.mask.shape == (112, 112)


def test_instances_and_refinement(gaze):
    image = squares((0, 0, 42, 42, 255), (70, 70, 98, 98, 240))
    (largest,) = find_objects(gaze, image, ["dog"], maps=brightness)
    assert largest.box == pytest.approx((0, 0, 42, 42), abs=1)
    first, second = find_objects(gaze, image, ["dog"], instances=5, maps=brightness)
    assert {first.box[0] < 50, second.box[0] < 50} == {True, False}

    discs = Discs(14)
    found = find_objects(gaze, image, ["dog"], instances=5, segmenter=discs, refine=2, maps=brightness)
    assert len(discs.asked) == 3 * len(found)
    assert [call[3] is None for call in discs.asked] == [True, False, False] * len(found)
    assert [each.score for each in found] == [0.75] * len(found)  # of the last refinement
    (x, y), labels = discs.asked[0][1][0].tolist(), discs.asked[0][2]
    assert x < 42 > y
    assert labels.tolist() == [1, 0]
    assert found[0].mask.sum() < 14**2 * 3.2


def test_several_questions_and_words(gaze):
    asked = []

    def noted(gaze, inputs, *, rows):
        asked.append((gaze.reader.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True), rows))
        return brightness(gaze, inputs, rows=rows)

    questions = ["Is there a {} in the image?", "Where is the {}?"]
    found = find_objects(gaze, ONE, ["dog", "apple"], questions=questions, maps=noted)
    texts = [text for text, _ in asked]
    assert [text.split("USER:")[-1].split("ASSISTANT")[0].strip() for text in texts] == [
        "Is there a dog in the image?",
        "Is there an apple in the image?",
        "Where is the dog?",
        "Where is the apple?",
    ]
    assert {each.word for each in found} == {"dog", "apple"}  # one each: the boxes are the same
    assert len(found) == 2
    ids = gaze.inputs(ONE, "Is there a dog in the image?")["input_ids"][0]
    assert gaze.reader.tokenizer.decode(ids[asked[0][1][0]]).strip() == "dog"


@pytest.mark.parametrize("words", [None, ["dog", "zebra"]])
def test_words_that_the_model_says(words):
    gaze = regaze.wrap(*regaze.load("demo"))
    scene = next(each for each in scenes() if each.name.startswith("scene_012"))
    found = find_objects(gaze, scene.image(), words, questions=["Describe the image in detail."])
    names = {each.word for each in found}
    assert "dog" in names
    assert "zebra" not in names
    assert words is None or names == {"dog"}


@pytest.mark.parametrize("make", [tiny_sam, tiny_sam2])
def test_sam(make):
    segmenter, image = make(), picture(3, 90, 50)
    prompted = segmenter(image)
    points, labels = torch.tensor([[20.0, 10.0], [80.0, 40.0]]), torch.tensor([1, 0])
    first = prompted(points, labels, None)
    assert first.mask.shape == (50, 90)
    assert first.mask.dtype == torch.bool
    again = prompted(points, labels, None)
    assert torch.equal(first.mask, again.mask)
    refined = prompted(points, labels, first.logits)
    assert not torch.equal(refined.logits, first.logits)
    assert not torch.equal(prompted(points, 1 - labels, None).logits, first.logits)
    assert not torch.equal(segmenter(picture(4, 90, 50))(points, labels, None).logits, first.logits)


def test_sam_s_masks_are_those_of_transformers():
    """Pixels and points in one call of model and processor, without the kept embeddings."""
    segmenter, image = tiny_sam(), picture(3, 90, 50)
    points, labels = torch.tensor([[20.0, 10.0], [80.0, 40.0]]), torch.tensor([1, 0])
    found = segmenter(image)(points, labels, None)
    options = {"input_points": [[points.tolist()]], "input_labels": [[labels.tolist()]]}
    inputs = segmenter.processor(images=image, return_tensors="pt", **options)
    with torch.no_grad():
        output = segmenter.model(**inputs.to(torch.float32))
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    masks = segmenter.processor.post_process_masks(output.pred_masks, *sizes)[0][0]
    best = int(output.iou_scores.argmax())
    assert found.score == pytest.approx(float(output.iou_scores[0, 0, best]))
    assert torch.equal(found.mask, masks[best])


def test_objects_with_sam(gaze):
    found = find_objects(gaze, ONE, ["dog"], segmenter=tiny_sam(), pairs=2, maps=brightness)
    for each in found:  # a random model's mask may be empty, and is left out then
        assert each.mask.shape == (112, 112)
        assert bounding_box(each.mask) == each.box


def test_errors(gaze):
    for wrong in (
        {"words": "dog"},
        {"words": ["dog"], "questions": "Where?"},
        {"words": None, "questions": ["Is there a {}?"]},
        {"words": ["dog"], "scales": []},
        {"words": ["dog"], "scales": [1.5]},
        {"words": ["dog"], "instances": 0},
        {"words": ["dog"], "pairs": 0},
        {"words": ["dog"], "refine": -1},
        {"words": ["dog"], "threshold": 0.0},
    ):
        with pytest.raises(BadParameterError):
            find_objects(gaze, ONE, **{"maps": brightness, **wrong})
    with pytest.raises(ModelNotFoundError, match="cannot load the segmenter 'no/such/sam'"):
        load_segmenter("no/such/sam")
