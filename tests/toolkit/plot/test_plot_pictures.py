"""Maps lie on the picture that was asked about, whatever its shape, and on no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import picture
from PIL import ExifTags, Image, ImageOps

from regaze import Record
from regaze.errors import InputError
from regaze.toolkit import analysis, plot
from regaze.toolkit.analysis.sink_profile import SinkProfile
from regaze.toolkit.viewer import record_page

WIDE = picture(1, width=336, height=112)
QUESTION = "Is there a dog in the image?"


def recorded(gaze, image):
    with gaze.recording(slices="image") as record:
        gaze.ask([image], [QUESTION], max_new_tokens=2, eos_token_id=None)
    return record


@pytest.fixture(scope="module")
def record(gaze):
    return recorded(gaze, WIDE)


def placed(figure, panel: int = 1) -> tuple[np.ndarray, tuple[float, ...]]:
    """The map, and where it lies as shares of the picture: left, upper, right and lower edge."""
    picture, cells = figure.axes[panel].images[:2]
    (left, right, lower, upper), (x0, x1, y1, y0) = picture.get_extent(), cells.get_extent()
    across, down = right - left, lower - upper
    edges = (x0 - left) / across, (y0 - upper) / down, (x1 - left) / across, (y1 - upper) / down
    assert figure.axes[panel].get_xlim() == (left, right)
    assert figure.axes[panel].get_ylim() == (lower, upper)
    return np.asarray(cells.get_array()), edges


def test_the_whole_picture_gets_its_map_where_the_model_saw_it(gaze, record):
    """CLIP's processor crops the middle third of a picture of three to one."""
    cells, edges = placed(plot.heatmap(record, gaze.seen(WIDE)))
    assert edges == (0, 0, 1, 1)
    for image in (WIDE, WIDE.resize((168, 56)), WIDE.resize((1000, 333))):
        same, edges = placed(plot.heatmap(record, image))
        np.testing.assert_array_equal(same, cells)
        assert edges == pytest.approx((1 / 3, 0, 2 / 3, 1))
    figure = plot.token_layer_grid(record, WIDE, layers=[1, 2])
    assert placed(figure, 0)[1] == pytest.approx((1 / 3, 0, 2 / 3, 1))
    # The picture keeps its shape: three units of width for one of height.
    extent = figure.axes[0].images[0].get_extent()
    assert figure.axes[0].get_aspect() == pytest.approx((extent[1] - extent[0]) / extent[2] / 3)


@pytest.mark.parametrize("size", [(112, 336), (224, 112), (640, 480), (112, 100)])
def test_a_picture_of_another_shape_is_refused(gaze, record, size):
    other = picture(2, *size)
    sinks = analysis.sink_tokens(gaze, gaze.inputs([WIDE], [QUESTION]), profile())
    for draw in (plot.heatmap, plot.token_layer_grid):
        with pytest.raises(InputError, match="asked about one of 336 x 112, received as 112 x 112"):
            draw(record, other)
    with pytest.raises(InputError, match="asked about one of 336 x 112"):
        plot.sink_map(sinks, other)
    with pytest.raises(InputError, match="asked about one of 336 x 112"):
        record_page(record, images=[other])
    assert placed(plot.sink_map(sinks, WIDE), 0)[1] == pytest.approx((1 / 3, 0, 2 / 3, 1))


def profile():
    return SinkProfile((0, 1), tau=13.0)


def test_a_record_that_was_saved_knows_its_picture(gaze, record, tmp_path):
    record.save(tmp_path / "record")
    again = Record.load(tmp_path / "record")
    assert again[0].tokens.views[0][0].picture == record[0].tokens.views[0][0].picture
    assert again[0].tokens.views[0][0].picture.size == (336, 112)
    assert placed(plot.heatmap(again, WIDE))[1] == pytest.approx((1 / 3, 0, 2 / 3, 1))
    with pytest.raises(InputError, match="asked about one of 336 x 112"):
        plot.heatmap(again, picture(2, 112, 336))


def test_inputs_of_unknown_pictures_are_drawn_on_what_the_model_received_alone(gaze):
    """A user's own call of the processor: the shape of the picture is not in its outputs."""
    text = gaze.reader.render(QUESTION, 1).text
    inputs = gaze.processor(text=[text], images=[WIDE], return_tensors="pt")
    with gaze.recording(slices="image") as record:
        gaze.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert placed(plot.heatmap(record, gaze.seen(WIDE)))[1] == (0, 0, 1, 1)
    with pytest.raises(InputError, match=r"336 x 112 pixels, but the tokens of the image are 8 x 8 square"):
        plot.heatmap(record, WIDE)


def test_beams_and_batches_know_their_pictures(gaze):
    """One question about pictures of three shapes: the ids are the same."""
    images = [picture(0, 112, 112), WIDE, picture(2, 112, 200)]
    with gaze.recording(slices="image") as record:
        gaze.ask(images, [QUESTION] * 3, max_new_tokens=2, num_beams=2, eos_token_id=None)
    views = record[0].tokens.views
    sizes = [sample[0].picture.size for sample in views]
    assert sizes == [image.size for image in images for _ in range(len(sizes) // 3)]
    assert views[0][0].box == (0, 0, 1, 1)
    assert views[-1][0].box == pytest.approx((0, 0.22, 1, 0.78))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_photo_is_asked_about_and_drawn_as_it_is_shown(gaze, orientation, tmp_path):
    note = Image.Exif()
    note[ExifTags.Base.Orientation] = orientation
    WIDE.save(tmp_path / "a.png", exif=note)
    with Image.open(tmp_path / "a.png") as file:
        shown = ImageOps.exif_transpose(file).convert("RGB")
    turned = gaze.inputs([tmp_path / "a.png"], [QUESTION])["pixel_values"]
    assert turned.equal(gaze.inputs([shown], [QUESTION])["pixel_values"])
    assert gaze.seen(tmp_path / "a.png").tobytes() == gaze.seen(shown).tobytes()
    record = recorded(gaze, tmp_path / "a.png")
    figure = plot.heatmap(record, tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(figure.axes[0].images[0].get_array()), np.asarray(shown))
    upright = record_page(record, images=[shown]).html
    assert record_page(record, images=[tmp_path / "a.png"]).html == upright


def test_maps_without_a_record_need_what_the_model_received(gaze):
    square = {"map": torch.rand(8, 8)}
    plot.maps(square, gaze.seen(WIDE))
    with pytest.raises(InputError, match=r"336 x 112 pixels, but .* 8 x 8 square cells"):
        plot.maps(square, WIDE)
    plot.maps({"map": torch.rand(4, 12)}, WIDE)


def test_large_pictures_are_drawn_small(record):
    figure = plot.heatmap(record, Image.new("RGB", (6300, 2100)))
    assert np.asarray(figure.axes[0].images[0].get_array()).shape[:2] == (683, 2048)
