"""Pictures of analyses show their numbers."""

from __future__ import annotations

from importlib import resources

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from models import picture
from PIL import Image

from regaze import Role
from regaze.errors import BadParameterError, InputError, RecordingError
from regaze.toolkit import analysis, plot
from regaze.toolkit.analysis.sink_profile import SinkProfile
from regaze.toolkit.plot import style

QUESTION = "Is there a dog in the image?"


@pytest.fixture(scope="module")
def seen(gaze):
    return gaze.seen(picture(1))


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(1)], [QUESTION])


@pytest.fixture(scope="module")
def record(gaze):
    with gaze.recording(slices="all", rows="all") as record:
        gaze.ask([picture(1)], [QUESTION], max_new_tokens=4, eos_token_id=None)
    return record


@pytest.fixture(scope="module")
def rhythm(gaze, inputs):
    forced = analysis.with_answers(gaze, inputs, ["Yes, there is a dog beside the tree in the image."])
    return analysis.rhythm(gaze, forced)[0]


@pytest.fixture(scope="module")
def lens(gaze, inputs):
    return analysis.logit_lens(gaze, inputs)


def labels(axes) -> tuple[str, str]:
    return axes.get_xlabel(), axes.get_ylabel()


def words(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# Maps ---------------------------------------------------------------------------------------------------


def test_maps_are_drawn_with_their_boxes(seen):
    amount, change = torch.rand(4, 4), torch.randn(4, 4)
    figure = plot.maps({"amount": amount, "change": change}, seen, boxes=[(28, 0, 56, 112)], columns=2)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown[:3]] == ["image", "amount", "change"]
    assert [axes.get_label() for axes in shown[3:]] == ["<colorbar>"] * 2
    for axes, values, colours in ((shown[1], amount, "inferno"), (shown[2], change, "lost_gained")):
        drawn = axes.images[-1]
        np.testing.assert_allclose(np.asarray(drawn.get_array()), values.numpy())
        assert drawn.get_cmap().name == colours
        (frame,) = axes.patches
        assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (1, 0, 1, 4)
    low, high = shown[2].images[-1].get_clim()
    assert low == -high == pytest.approx(-float(change.abs().max()))
    for wrong in ({}, {"flat": torch.zeros(16)}):
        with pytest.raises(BadParameterError, match="at least one map"):
            plot.maps(wrong, seen)


def test_objects_have_a_colour_for_each_word(tmp_path):
    image, mask = Image.new("RGB", (40, 24)), torch.zeros(24, 40, dtype=torch.bool)
    mask[4:9, 10:20] = True
    found = [
        analysis.FoundObject(word, (10.0, 4.0, 20.0, 9.0), score, mask, "")
        for word, score in (("cat", 0.9), ("a $dog", 0.5), ("cat", 0.25))
    ]
    (axes,) = plot.objects(found, image, path=tmp_path / "objects.png").axes
    boxes = axes.patches
    assert [(b.get_x(), b.get_y(), b.get_width(), b.get_height()) for b in boxes] == [(10, 4, 10, 5)] * 3
    assert boxes[0].get_edgecolor() == boxes[2].get_edgecolor() != boxes[1].get_edgecolor()
    assert [text.get_text() for text in axes.texts] == ["cat 0.90", r"a \$dog 0.50", "cat 0.25"]
    layer = np.asarray(axes.images[1].get_array())
    assert ((layer[..., 3] > 0) == mask.numpy()).all()
    assert (tmp_path / "objects.png").stat().st_size > 1000
    with pytest.raises(InputError, match="found in a picture of 40 x 24 pixels, but this one has 24 x 40"):
        plot.objects(found, image.resize((24, 40)))
    assert not plot.objects([], image).axes[0].patches


def test_sinks_are_framed_where_they_reach_the_threshold(gaze, inputs, seen):
    values = analysis.sink_tokens(gaze, inputs, SinkProfile((0, 1), tau=13.0)).image_map()
    tau = float(values[2].flatten().kthvalue(60).values)
    sinks = analysis.sink_tokens(gaze, inputs, SinkProfile((0, 1), tau=tau))
    figure = plot.sink_map(sinks, seen, layers=[2, 4])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["layer 2", "layer 4"]
    for axes, layer in zip(figure.axes, (2, 4), strict=False):
        np.testing.assert_allclose(np.asarray(axes.images[-1].get_array()), values[layer].numpy())
        framed = {(int(patch.get_y()), int(patch.get_x())) for patch in axes.patches}
        assert framed == {tuple(place) for place in (values[layer] >= tau).nonzero().tolist()}
    assert len(figure.axes[0].patches) == 5
    with pytest.raises(BadParameterError, match="layer 9"):
        plot.sink_map(sinks, seen, layers=[9])


# Roles and heads ----------------------------------------------------------------------------------------


def test_areas_have_the_heights_of_the_flow(record):
    flow = analysis.role_flow(record)
    figure = plot.role_flow(flow, over="steps")
    axes = figure.axes[0]
    assert labels(axes) == ("answer token", "attention mass (mean over heads)")
    assert len(words(axes.xaxis)) == 4
    image = next(area for area in axes.collections if area.get_label() == "image")
    assert to_hex(image.get_facecolor()[0]).upper() == plot.ROLE_COLOURS[Role.IMAGE]
    top = {x: y for x, y in image.get_paths()[0].vertices if y > 0}
    for step, height in enumerate(flow.by_step()[:, int(Role.IMAGE)].tolist()):
        assert top[step] == pytest.approx(height, abs=1e-6)


def test_a_difference_of_flows_is_not_stacked(record):
    flow = analysis.role_flow(record)
    change = analysis.difference(flow, analysis.role_flow(record, rows=[0, 1, 2, 3]))
    with pytest.raises(BadParameterError, match="cannot be stacked"):
        plot.role_flow(change)
    with pytest.raises(BadParameterError, match="over must be"):
        plot.role_flow(flow, over="heads")


def test_changes_of_heads_are_coloured_around_zero():
    scores = torch.tensor([[0.5, -2.0], [1.0, 0.0]])
    drawn = plot.head_scores(scores, label="change").axes[0].images[0]
    assert (drawn.get_cmap().name, drawn.get_clim()) == ("lost_gained", (-2.0, 2.0))
    assert plot.head_scores(scores.clamp_min(0)).axes[0].images[0].get_clim() == (0, 1.0)


def test_gains_and_losses_have_the_colours_of_the_viewers_page():
    css = resources.files("regaze.toolkit.viewer").joinpath("assets/viewer.css").read_text(encoding="utf-8")
    (least_gain, most_gain), (most_loss, least_loss) = style.GAINED, style.LOST
    assert f"--gained: light-dark({least_gain}, {most_gain});" in css
    assert f"--lost: light-dark({least_loss}, {most_loss});" in css
    assert [to_hex(style.DIFFERENCE(share)) for share in (0.0, 1.0)] == [most_loss, most_gain]


# Lenses -------------------------------------------------------------------------------------------------


def test_a_lens_table_has_the_words_and_their_probability(gaze, inputs, lens):
    text = [gaze.reader.tokenizer.decode([token]) for token in inputs["input_ids"][0].tolist()]
    rows = [int(place) for place in range(len(text) - 4, len(text))]
    figure = plot.lens_table(lens, text=text, rows=rows, layers=[0, 6])
    axes = figure.axes[0]
    np.testing.assert_allclose(
        np.asarray(axes.images[0].get_array()), lens.top_probs[[0, 6]][:, 0, rows, 0].numpy()
    )
    expected = lens.words()
    spelled = [style.visible_text(expected[layer][row]) for layer in (0, 6) for row in rows]
    assert [each.get_text()[:9] for each in axes.texts] == [style.figure_text(word)[:9] for word in spelled]
    assert words(axes.yaxis) == ["0", "6"]
    assert words(axes.xaxis) == [style.figure_text(style.visible_text(text[row])) for row in rows]
    with pytest.raises(BadParameterError, match="text must have a token"):
        plot.lens_table(lens, text=["a"])
    with pytest.raises(BadParameterError, match="layer 7"):
        plot.lens_table(lens, layers=[7])


def test_patches_have_their_words(lens, seen):
    table = plot.lens_patches(lens, seen, layer=5).axes[1]
    told = [each.get_text() for each in table.texts]
    expected = [word for row in lens.image_words(5) for word in row]
    assert [each[:9] for each in told] == [
        style.figure_text(style.visible_text(word))[:9] for word in expected
    ]
    assert table.images[0].get_array().shape == (8, 8)


# Tokens -------------------------------------------------------------------------------------------------


def test_a_token_matrix_is_the_mean_of_heads_without_the_future(record):
    trace = record[0]
    figure = plot.token_matrix(record, layers=[1], rows="answer")
    axes = figure.axes[0]
    drawn = np.asarray(axes.images[0].get_array().filled(np.nan))
    rows = trace.answer_rows()
    expected = trace.slices[1, 0][:, rows].mean(0).numpy()
    for number, position in enumerate(trace.row_position[rows].tolist()):
        np.testing.assert_allclose(drawn[number, 1 : position + 1], expected[number, 1 : position + 1], 1e-6)
        assert np.isnan(drawn[number, position + 1 :]).all()
    assert np.isnan(drawn[:, 0]).all()
    assert not np.isnan(np.asarray(plot.token_matrix(record, sink=True).axes[0].images[0].get_array())[-1, 0])
    assert len(words(axes.yaxis)) == len(rows)


def test_a_token_matrix_needs_all_columns(gaze):
    with gaze.recording(slices="image") as record:
        gaze.ask([picture(1)], [QUESTION], max_new_tokens=1)
    with pytest.raises(RecordingError, match='slices="all"'):
        plot.token_matrix(record)
    with pytest.raises(RecordingError, match="no cross-attention"):
        plot.cross_attention(record)


def test_cross_attention_is_drawn_against_seconds():
    weights = torch.rand(3, 100)
    figure = plot.cross_attention(weights, words=["a", " b", "\n"], end=1.0)
    axes = figure.axes[0]
    drawn = axes.images[0]
    assert drawn.get_extent()[:2] == [0.0, 1.0]
    kept = weights[:, :50]
    np.testing.assert_allclose(
        np.asarray(drawn.get_array()), (kept / kept.amax(1, keepdim=True)).numpy(), 1e-6
    )
    assert words(axes.yaxis) == ["a", "b", "↵"]
    assert labels(axes) == ("time in the recording (s)", "token that is written")
    with pytest.raises(BadParameterError, match="T words"):
        plot.cross_attention(weights, words=["a"])


# Curves and estimates -----------------------------------------------------------------------------------


def test_the_rhythm_and_its_marked_tokens(rhythm):
    upper, lower = plot.rhythm(rhythm, q=0.3).axes
    for axes, values, marked in (
        (upper, rhythm.waad, rhythm.preplans(0.3)),
        (lower, rhythm.fai, rhythm.anchors(0.3)),
    ):
        line, dots = axes.lines[:2]
        np.testing.assert_allclose(line.get_ydata(), values.numpy())
        np.testing.assert_array_equal(dots.get_xdata(), marked.numpy())
    assert upper.get_ylabel().startswith("WAAD")
    assert lower.get_ylabel().startswith("FAI")
    assert len(words(lower.xaxis)) == len(rhythm.text)


def test_perturbation_curves_are_means_with_intervals():
    share = torch.linspace(0, 1, 3)
    scores = torch.tensor([[0.0, -1.0, -2.0], [0.0, -3.0, -4.0], [0.0, -2.0, -3.0]])
    several = [analysis.Curve(share, each) for each in scores]
    figure = plot.perturbation_curves(
        {"deletion": {"mine": several, "shuffled": several}, "insertion": {"mine": several}}
    )
    first = figure.axes[0]
    np.testing.assert_allclose(first.lines[0].get_ydata(), scores.mean(0))
    assert first.lines[1].get_linestyle() == "--"
    band = first.collections[0].get_paths()[0].vertices
    middle = band[band[:, 0] == 0.5, 1]
    expected = analysis.estimate(scores[:, 1])
    assert (middle.min(), middle.max()) == pytest.approx((expected.low, expected.high))
    assert [axes.get_title() for axes in figure.axes] == ["deletion", "insertion"]
    other = analysis.Curve(torch.linspace(0, 1, 2), torch.zeros(2))
    for wrong in (
        {},
        {"deletion": {}},
        {"deletion": {"mine": []}},
        {"deletion": {"mine": [several[0], other]}},
    ):
        with pytest.raises(BadParameterError, match="curves"):
            plot.perturbation_curves(wrong)


def test_pointing_bars_come_in_order_with_their_controls():
    hits = {"a": analysis.estimate([0.0, 1.0, 1.0, 1.0]), "b": {"value": 0.2, "low": 0.1, "high": 0.4}}
    axes = plot.pointing_game(
        hits, controls={"b": {"value": 0.05, "low": None, "high": None}}, chance=0.1
    ).axes[0]
    assert words(axes.yaxis) == ["b", "a"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.2, 0.75])
    (bars,) = axes.containers[0].lines[2]
    np.testing.assert_allclose(bars.get_segments()[0], [[0.1, 0], [0.4, 0]])
    marks = next(line for line in axes.lines if line.get_label() == "shuffled map")
    assert (marks.get_xdata().tolist(), marks.get_ydata().tolist()) == ([0.05], [0])
    for wrong, more in (({}, {}), ({"a": (float("nan"),) * 3}, {}), (hits, {"controls": {"c": hits["a"]}})):
        with pytest.raises(BadParameterError, match="at least one map"):
            plot.pointing_game(wrong, **more)


def test_comparisons_have_a_panel_for_each_figure():
    panels = {
        "accuracy": {"var": (1.0, -1.0, 2.0), "vcd": {"value": None, "low": None, "high": None}},
        "F1": {"var": analysis.estimate([1.0, 3.0])},
    }
    figure = plot.forest_plot(panels, label="points")
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("accuracy", "F1")
    assert words(first.yaxis) == ["var", "vcd"]
    assert first.lines[0].get_xdata() == pytest.approx([-1.0, 2.0])
    assert first.lines[1].get_xdata() == pytest.approx([1.0])
    assert np.isnan(first.lines[3].get_xdata()).all()
    assert second.lines[1].get_xdata() == pytest.approx([2.0])
    assert figure.get_supxlabel() == "points"
    for wrong in ({}, {"accuracy": {}}):
        with pytest.raises(BadParameterError, match="at least one method"):
            plot.forest_plot(wrong)


def test_panels_of_a_comparison_go_on_in_another_row():
    panels = {name: {"var": (1.0, -1.0, 2.0)} for name in "abcd"}
    figure = plot.forest_plot(panels, columns=3)
    assert [axes.get_title() for axes in figure.axes] == list("abcd")
    rows = [axes.get_subplotspec().rowspan.start for axes in figure.axes]
    assert rows == [0, 0, 0, 1]
    assert figure.get_figheight() > plot.forest_plot(panels).get_figheight()
    with pytest.raises(BadParameterError, match="at least 1"):
        plot.forest_plot(panels, columns=0)


# Style --------------------------------------------------------------------------------------------------


def test_files_are_the_same_every_time_and_nothing_is_left_behind(record, tmp_path):
    before = dict(matplotlib.rcParams)
    for name in ("a", "b"):
        for ending in ("svg", "pdf"):
            plot.role_flow(analysis.role_flow(record), path=tmp_path / f"{name}.{ending}")
    for ending in ("svg", "pdf"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_words_with_signs_are_drawn_as_they_are(tmp_path):
    figure = plot.cross_attention(torch.rand(2, 4), words=["$x^2", "5$"], path=tmp_path / "signs.svg")
    assert words(figure.axes[0].yaxis) == [r"\$x^2", r"5\$"]
    assert [style.visible_text(word) for word in (" a ", "\n", "  ")] == ["a", "↵", "␣␣"]


@pytest.mark.parametrize("shape", [(3, 4), (6, 6), (40, 32)])
def test_a_long_label_of_head_scores_stays_in_the_figure(shape):
    label = "attention of the word on the dog, mean over all of its rows"
    figure = plot.head_scores(torch.rand(shape, generator=torch.Generator().manual_seed(0)), label=label)
    FigureCanvasAgg(figure).draw()
    shown = figure.axes[1].yaxis.label
    assert shown.get_text().replace("\n", " ") == label
    box = shown.get_window_extent()
    assert min(box.x0, box.y0) >= 0
    assert box.y1 <= figure.bbox.height
    assert box.x1 <= figure.bbox.width
