"""Plots show the numbers of the record."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from models import llava_processor, picture, small_var
from PIL import Image

from regaze import Role
from regaze.errors import BadParameterError, InputError, RecordingError
from regaze.toolkit import plot
from regaze.toolkit.analysis import asked_word, role_flow
from regaze.toolkit.viewer import record_page

QUESTION = "Is there a dog in the image?"


@pytest.fixture(scope="module")
def record(gaze):
    with gaze.recording(slices="image") as record:
        gaze.ask([picture(1)], ["Is there a dog in the image?"], max_new_tokens=3, eos_token_id=None)
    return record


def drawn_map(axes) -> np.ndarray:
    return np.asarray(axes.images[-1].get_array())


def test_heatmap_is_the_mean_of_the_chosen_rows(gaze, record, tmp_path):
    figure = plot.heatmap(
        record, gaze.seen(picture(1)), token=2, layers=[3, 4], heads=[0, 5], path=tmp_path / "heat.png"
    )
    trace = record[0]
    columns = trace.tokens.image_cells(0, 0)
    row = int(trace.answer_rows()[2])
    held = [int((trace.slice_columns[0] == column).nonzero()) for column in columns]
    expected = trace.slices[3:5, 0][:, [0, 5], row][..., held].mean((0, 1)).view(8, 8)
    np.testing.assert_allclose(drawn_map(figure.axes[1]), expected.numpy(), rtol=1e-6)
    assert figure.axes[1].get_title().startswith(("“", "answer token"))
    assert (tmp_path / "heat.png").stat().st_size > 5000


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_every_format_is_written(gaze, record, tmp_path, suffix):
    image = gaze.seen(picture(1))
    plot.token_layer_grid(record, image, layers=[1, 2], path=tmp_path / f"grid.{suffix}")
    plot.role_masses(record, path=tmp_path / f"layers.{suffix}")
    plot.role_masses(record, over="steps", path=tmp_path / f"steps.{suffix}")
    assert all((tmp_path / f"{name}.{suffix}").stat().st_size > 1000 for name in ("grid", "layers", "steps"))


def test_a_word_of_the_question_has_a_map(gaze, tmp_path):
    with gaze.recording(slices="image", rows="text") as record:
        gaze.ask([picture(1)], ["Is there a cell phone in the image?"], max_new_tokens=2, eos_token_id=None)
    trace, decode = record[0], llava_processor().tokenizer.decode
    for word, last in (("cell phone", "phone"), ("there", "there"), ("image?", "?")):
        position = int(trace.row_position[trace.row_of(word)])
        assert decode(trace.input_ids[0, position]).strip() == last
    figure = plot.heatmap(record, gaze.seen(picture(1)), token="cell phone", layers=[1])
    assert figure.axes[1].get_title().startswith("“cell phone” · layer 1")
    with pytest.raises(BadParameterError, match="'zebra' occurs neither"):
        trace.row_of("zebra")
    plot.token_layer_grid(record, gaze.seen(picture(1)), tokens=["there", 0], layers=[0, 1])


def test_grid_has_a_panel_per_token_and_layer(gaze, record):
    figure = plot.token_layer_grid(record, gaze.seen(picture(1)), tokens=[0, 1], layers=[0, 2, 5])
    assert [axes.get_label() == "<colorbar>" for axes in figure.axes] == [False] * 6 + [True] * 2
    expected = plot.answer_map(record[0], token=1, layers=[5])
    np.testing.assert_allclose(drawn_map(figure.axes[5]), expected)


def test_stacked_masses_end_at_one(record):
    for over, count in (("layers", 6), ("steps", 3)):
        figure = plot.role_masses(record, over=over)
        collections = figure.axes[0].collections
        top = max(path.vertices[:, 1].max() for collection in collections for path in collection.get_paths())
        assert top == pytest.approx(1.0, abs=1e-5)
        assert len(figure.axes[0].get_xticks()) == count
        labels = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
        assert {"image", "query", "system", "tail"} <= labels
    masses = record[0].masses[:, 0].mean(1)[:, 0]
    assert torch.allclose(masses.sum(-1), torch.ones(6), atol=1e-5)
    assert set(plot.ROLE_COLOURS) == set(Role)


def test_wrong_choices(gaze, record, tmp_path):
    image = gaze.seen(picture(1))
    with pytest.raises(BadParameterError, match=r"the record has 0\.\.2"):
        plot.heatmap(record, image, token=9)
    with pytest.raises(BadParameterError, match=r"layer 6 was not recorded; the record has \[0, 1, 2, 3"):
        plot.heatmap(record, image, layers=[6])
    with pytest.raises(BadParameterError, match=r"head 6 was not recorded; the record has 0\.\.5"):
        plot.heatmap(record, image, heads=[6])
    with pytest.raises(BadParameterError, match="cannot write the figure"):
        plot.heatmap(record, image, path=tmp_path / "heat.abc")
    with pytest.raises(InputError, match="there is no image 'nope'"):
        plot.heatmap(record, "nope")
    with pytest.raises(BadParameterError, match="layers"):
        plot.role_masses(record, over="heads")
    with pytest.raises(BadParameterError, match='rows="text"'):
        plot.heatmap(record, image, token="dog")
    with gaze.recording() as plain:
        gaze.ask([picture(1)], ["What?"], max_new_tokens=1)
    with pytest.raises(RecordingError, match=r'role_masses\(record\) draws.*slices="image"'):
        plot.heatmap(plain, image)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layers": []}, "layers: expected a list with at least one layer"),
        ({"layers": 3}, "layers: expected a list with at least one layer, got 3"),
        ({"layers": [1.5]}, r"expected the layer's number, got 1\.5"),
        ({"heads": []}, "heads: expected a list with at least one head"),
        ({"heads": [-1]}, r"head -1 was not recorded; the record has 0\.\.5"),
        ({"sample": 5}, r"sample 5 was not recorded; the record has 0\.\.0"),
        ({"sample": -1}, r"sample -1 was not recorded"),
        ({"token": -1}, r"answer token -1 was not recorded; the record has 0\.\.2"),
        ({"token": 1.5}, "expected the answer token's number, got 1.5"),
        ({"number": -1}, r"image -1 was not recorded; the record has 0\.\.0"),
        ({"number": 2}, r"image 2 was not recorded"),
    ],
)
def test_every_function_names_what_there_is(gaze, record, choice, message):
    image = gaze.seen(picture(1))
    with pytest.raises(BadParameterError, match=message):
        plot.heatmap(record, image, **choice)
    if "token" not in choice:
        with pytest.raises(BadParameterError, match=message):
            plot.token_layer_grid(record, image, **choice)
    if "number" not in choice:
        with pytest.raises(BadParameterError, match=message):
            plot.role_masses(record, **choice)


@pytest.mark.parametrize("tokens", [[], 2, "dog"])
def test_a_grid_needs_a_list_of_tokens(gaze, record, tokens):
    with pytest.raises(BadParameterError, match="tokens: expected a list with at least one token"):
        plot.token_layer_grid(record, gaze.seen(picture(1)), tokens=tokens)


def test_numpy_integers_are_numbers(gaze, record):
    image, numbers = gaze.seen(picture(1)), np.array([1, 2])
    figure = plot.heatmap(record, image, token=numbers[0], layers=numbers, heads=numbers, sample=np.int64(0))
    expected = plot.answer_map(record[0], token=1, layers=[1, 2], heads=[1, 2])
    np.testing.assert_array_equal(drawn_map(figure.axes[1]), expected)
    plot.token_layer_grid(record, image, tokens=numbers, layers=numbers)
    assert len(plot.role_masses(record, layers=numbers).axes[0].get_xticks()) == 2


def test_the_colour_bar_shows_the_colours_of_the_map(gaze, record):
    image = Image.new("RGB", (112, 112), (120, 120, 120))
    figure = plot.heatmap(record, image)
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=100)
    pixels = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    overlay, bar = figure.axes[1], figure.axes[2]

    def colour(axes, x: float, y: float) -> np.ndarray:
        column, row = axes.transData.transform((x, y))
        return pixels[len(pixels) - 1 - int(row), int(column)]

    grid = drawn_map(overlay)
    row, column = np.unravel_index(grid.argmax(), grid.shape)
    for y, x in ((row, column), (0, 0), (3, 5)):
        value = min(max(grid[y, x], 0.01 * grid.max()), 0.99 * grid.max())  # off the bar's frame
        shown = colour(overlay, x + 0.5, y + 0.5)
        assert np.abs(shown - colour(bar, 0.5, value)).max() <= 12


def test_a_notebook_shows_figures_and_what_they_are_of_in_a_few_lines(gaze, record):
    """A bare matplotlib figure is shown by no notebook; a page or a record is not printed whole."""
    figure = plot.heatmap(record, gaze.seen(picture(1)), layers=[0])
    shown = Image.open(io.BytesIO(figure._repr_png_()))
    assert shown.width > 600
    assert shown.width / shown.height == pytest.approx(7.4 / 3.5, rel=0.01)
    flow = role_flow(record)
    assert repr(flow) == str(flow)
    assert repr(flow).startswith("layer ")
    tokens = record[0].tokens
    images = int((tokens.roles == Role.IMAGE).sum())
    assert f"{images} IMAGE" in repr(tokens)
    assert len(repr(tokens)) < 300
    assert repr(record_page(record)).startswith("Page(plain: ")
    assert len(repr(record_page(record))) < 100


def test_the_first_heatmap_is_of_the_word_that_the_question_asks_about(gaze):
    with gaze.using(small_var()), gaze.recording(slices="image", rows="text") as record:
        gaze.ask([picture(1)], [QUESTION], max_new_tokens=1)
    figure = plot.heatmap(record, picture(1))
    assert figure.axes[1].get_title() == "var · “dog” · all layers · mean over heads"
    np.testing.assert_array_equal(drawn_map(figure.axes[1]), plot.answer_map(record[0], token="dog"))


@pytest.mark.parametrize(
    ("question", "word"),
    [
        (QUESTION, "dog"),
        ("Is there a dog in the image? Please answer yes or no.", "dog"),
        ("What color is the car?", "car"),
        ("Please describe this image in detail.", None),
        ("Answer the question using a single word: is a man holding the cup", "cup"),
    ],
)
def test_the_word_asked_about(gaze, question, word):
    with gaze.recording(slices="image", rows="text") as record:
        gaze.ask([picture(1)], [question], max_new_tokens=1)
    assert asked_word(record[0]) == word


def test_without_the_rows_of_the_question_the_first_heatmap_is_of_the_answer(gaze, record):
    assert asked_word(record[0]) is None
    figure = plot.heatmap(record, picture(1))
    np.testing.assert_array_equal(drawn_map(figure.axes[1]), plot.answer_map(record[0], token=0))


def test_a_figure_is_as_high_as_its_picture(gaze, record):
    wide = plot.heatmap(record, Image.new("RGB", (112, 112)), title="x").get_size_inches()
    assert wide[1] == pytest.approx(3.5)
