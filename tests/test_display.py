"""Results in a notebook: one line, a table whose texts act on nothing, a DataFrame."""

from __future__ import annotations

import json
import pickle
import sys
from typing import NamedTuple

import pytest
import torch
from models import llava_processor, picture, small_var, tiny_llama
from transformers import BatchFeature

import regaze
from regaze.display import MissingPandasError, Summary, brief, first_lines, long_table, ranges, short_repr
from regaze.eval import RunResults, load_results
from regaze.eval.benchmarks import NAMES, load_class
from regaze.eval.benchmarks.common.base import BaseBenchmark
from regaze.interventions.adhh.head_search import Influence
from regaze.interventions.retrieval_heads.head_scores import RetrievalHeads
from regaze.toolkit import Role, TokenMap, analysis
from regaze.toolkit.analysis.sink_profile import SinkProfile
from regaze.toolkit.record.record import Record

QUESTION = "Is there a dog in the image?"


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs([picture(1)], [QUESTION])


@pytest.fixture(scope="module")
def record(gaze):
    with gaze.using(small_var()), gaze.recording(slices="image", entropy=True) as record:
        gaze.ask([picture(1), picture(2)], [QUESTION, "What?"], max_new_tokens=3, eos_token_id=None)
    return record


@pytest.fixture(scope="module")
def results(gaze, inputs, record):
    """An object of every class that a user is handed by the toolkit, by name."""
    forced = analysis.with_answers(gaze, inputs, ["Yes, there is a dog beside the tree."])
    sinks = analysis.sink_tokens(gaze, inputs, SinkProfile((0, 1), tau=2.0))
    draw = torch.Generator().manual_seed(0)
    rhythm = analysis.rhythm(gaze, forced)[0]
    effects = analysis.HeadEffects(
        (1, 2), *(torch.rand(size, generator=draw) for size in ((4,), (2, 4), (2, 3, 4)))
    )
    found = [
        *(gaze, inputs, record, record[0], record[0].tokens, forced, rhythm, rhythm.heads, sinks, effects),
        analysis.role_flow(record),
        analysis.head_table(record),
        analysis.rollout(gaze, inputs),
        analysis.massive_activations(gaze, inputs),
        analysis.logit_lens(gaze, inputs),
        analysis.sink_stability([sinks, sinks]),
        analysis.plain_and_edited(gaze, inputs, small_var(), analysis.rollout, answers=["Yes"]),
        analysis.Curve(torch.linspace(0, 1, 5), torch.rand(2, 5, generator=draw)),
        analysis.Agreement(torch.rand(40, generator=draw), 0.5),
        analysis.ClassLens(torch.zeros(3, 1, 5, 10), 1),
        analysis.PhraseEmbedding("a dog", torch.zeros(2, 64), tuple(range(100))),
        analysis.FoundObject("dog", (0.0, 0.0, 4.0, 4.0), 0.5, torch.zeros(99, 99).bool(), QUESTION),
        analysis.Segment(torch.zeros(99, 99).bool(), 0.5),
        Influence(torch.rand(6, 6, generator=draw), torch.zeros(6, 6)),
        RetrievalHeads(torch.rand(3, 6, 6, generator=draw)),
        analysis.ImageCells(gaze, picture(1), QUESTION, torch.tensor([40, 41]), grid=(2, 2)),
        analysis.TextTokens(gaze, picture(1), QUESTION, torch.tensor([40, 41])),
        analysis.PhraseMaps(gaze, inputs),
        load_class("pope").of_demo(),
    ]
    return {type(each).__name__: each for each in found}


def test_no_repr_is_an_address_or_floods_the_screen(results):
    assert len(results) == 29
    for name, each in results.items():
        shown = repr(each)
        assert name in shown or shown.startswith("layer "), shown
        assert " at 0x" not in shown
        assert "tensor(" not in shown
        assert len(shown) < 2_000, name
        assert shown.count("\n") < 30, name


def test_every_public_class_of_analyses_says_what_it_is():
    names = {name: getattr(analysis, name) for name in dir(analysis) if name[0].isupper()}
    classes = {name: each for name, each in names.items() if isinstance(each, type)}
    own = {name for name, each in classes.items() if each.__module__.startswith("regaze")}
    assert {"RoleFlow", "ImageCells", "SamSegmenter"} <= own
    assert [name for name in sorted(own) if classes[name].__repr__ is object.__repr__] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_shown_in_a_line(name):
    """Its dataclass would list all of its questions."""
    assert load_class(name).__repr__ is BaseBenchmark.__repr__


def test_questions_of_a_benchmark_are_a_table():
    pope = load_class("pope").of_demo()
    assert repr(pope).startswith(f"Pope(pope: {len(pope.items):,} questions about 120 images)")
    frame = pope.to_dataframe()
    assert list(frame.columns) == ["key", "split", "images", "question", "label"]
    assert len(frame) == len(pope.items)
    assert frame["images"][0] == pope.items[0].image.name
    assert "more rows" in pope._repr_html_()


def test_a_gaze_says_what_it_wraps_and_what_is_open(gaze, model):
    closed = repr(gaze)
    assert closed.startswith("Gaze(LlavaForConditionalGeneration")
    assert "llava, 6 layers x 6 heads, float32 on cpu; open: nothing)" in closed
    with gaze.using(small_var(), regaze.HeadKnockout(heads=((0, 0),))):
        assert repr(gaze).endswith("open: VAR, HeadKnockout)")
        assert "<td>VAR, HeadKnockout</td>" in gaze._repr_html_()
    text = regaze.wrap(tiny_llama())
    assert repr(text).startswith("Gaze(LlamaForCausalLM")
    assert "<td>processor</td><td>none</td>" in text._repr_html_()


def test_a_notebook_shows_tables(results):
    tables = ("Gaze", "Record", "Trace", "TokenMap", "RoleFlow", "HeadTable", "SinkTokens", "HeadEffects")
    for name in tables:
        html = results[name]._repr_html_()
        assert html.startswith('<table class="regaze">')
        assert html.count("<tr>") >= 2
        assert len(html) < 20_000
    flow = results["RoleFlow"]
    first = flow.by_layer()[0, Role.IMAGE]  # the image's mass in layer 0
    assert f"<td>{float(first):.4g}</td>" in flow._repr_html_()
    assert "12 more rows" in results["HeadTable"]._repr_html_()  # of 36 heads


def test_texts_of_others_act_on_nothing():
    text = "<img src=x onerror=alert(1)>\u202e\x1b[2J"
    html = Summary(text, {text: [text]}).html()
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") == 3
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert "\x1b" not in brief(text)


def test_frames_have_a_row_for_each_number(results, record):
    pytest.importorskip("pandas")
    trace, flow = record[0], results["RoleFlow"]
    frame = flow.to_dataframe()
    assert list(frame.columns[:4]) == ["layer", "head", "row", "text"]
    assert len(frame) == flow.masses[..., 0].numel()
    layer, head, row = 4, 3, 1
    line = frame[(frame.layer == layer) & (frame["head"] == head) & (frame.row == row)]
    assert line.image.item() == pytest.approx(float(flow.masses[layer, head, row, Role.IMAGE]))
    assert line.text.item() == flow.text[row]

    frame = record.to_dataframe()
    assert len(frame) == 6 * 6 * int(trace.row_active.sum())
    line = frame[(frame.layer == 2) & (frame["sample"] == 1) & (frame["head"] == 5) & (frame.step == 2)]
    at = int((trace.row_step == 2).nonzero())
    assert line.entropy.item() == pytest.approx(float(trace.entropy[2, 1, 5, at]))
    assert line.image.item() == pytest.approx(float(trace.masses[2, 1, 5, at, Role.IMAGE]))

    table = results["HeadTable"]
    assert table.to_dataframe().mass.tolist() == [row.mass for row in table]
    assert "distance" not in table.to_dataframe().columns  # it was not recorded

    tokens = trace.tokens.to_dataframe()
    assert (tokens.role == "image").sum() == int((trace.tokens.roles == Role.IMAGE).sum())

    sinks = results["SinkTokens"]
    assert sinks.to_dataframe().sink.sum() == int(sinks.counts().sum())

    effects = results["HeadEffects"]
    top = effects.to_dataframe().query("heads == 2 and without == 'top'")
    assert top.change.item() == pytest.approx(effects.change(1)["top"].value)

    flow = results["Flow"]
    assert flow.to_dataframe().flow.tolist() == flow.values[0, 0].tolist()
    lens = results["LogitLens"].to_dataframe()
    assert lens.probability.iloc[0] == pytest.approx(float(results["LogitLens"].top_probs[0, 0, 0, 0]))
    scores = results["Influence"].to_dataframe().query("layer == 1 and head == 2").score
    assert scores.item() == pytest.approx(float(results["Influence"].score[1, 2]))


def test_without_pandas_the_error_says_what_to_install(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPandasError, match=r"pip install 'regaze\[eval\]'"):
        results["RoleFlow"].to_dataframe()


def test_a_record_of_nothing_is_shown():
    assert repr(Record({})) == "Record: 0 traces"
    assert Record({})._repr_html_().count("<tr>") == 1


def test_many_traces_and_prompts_take_a_few_lines(record):
    many = Record(record.header, list(record) * 50)
    assert repr(many).count("\n") < 30
    assert "26 more rows" in many._repr_html_()
    stacked = TokenMap.stack([record[0].tokens] * 40)
    assert repr(stacked).endswith("grids 8 x 8)")


def test_values_in_few_words():
    class Pair(NamedTuple):
        a: object
        b: object

        def __repr__(self) -> str:
            return short_repr(self)

    assert repr(Pair(torch.zeros(2, 3), "x" * 500)) == f"Pair(a=[2, 3] float32, b='{'x' * 59}…')"
    assert ranges((0, 1, 2, 5, 7, 8)) == "[0..2, 5, 7, 8]"
    assert ranges(()) == "[]"
    assert brief((1.5, None)) == "(1.5, None)"
    assert brief(["a"] * 9) == "<9 x str>"
    assert first_lines("\n".join("abc")) == "a\nb\nc"
    table = long_table({"x": "ab", "y": range(3)}, v=torch.arange(6).view(2, 3))
    assert table == {"x": list("aaabbb"), "y": [0, 1, 2, 0, 1, 2], "v": [0, 1, 2, 3, 4, 5]}
    with pytest.raises(ValueError, match=r"v is \[3\]"):
        long_table({"x": "ab"}, v=torch.zeros(3))


def test_inputs_are_a_batch_feature_in_one_line(gaze):
    inputs = gaze.inputs([picture(0)], [QUESTION])
    assert isinstance(inputs, BatchFeature)
    assert repr(inputs).startswith("ModelInputs(input_ids=[1, ")
    assert "pixel_values=[1, 3, " in repr(inputs)
    shown = inputs._repr_html_()
    assert "<td>pixel_values</td><td>[1, 3, " in shown
    assert "<td>float32</td><td>cpu</td>" in shown
    again = pickle.loads(pickle.dumps(inputs)).to("cpu")
    assert type(again) is type(inputs)
    assert torch.equal(again.input_ids, inputs["input_ids"])


def test_inputs_of_a_text_model_are_short():
    gaze = regaze.wrap(tiny_llama(), llava_processor().tokenizer)
    forced = analysis.with_answers(gaze, gaze.inputs([None], ["What?"]), ["Yes"])
    assert repr(forced).startswith("Inputs(input_ids: [1, ")


# Results of a run -----------------------------------------------------------------------------------------


def figure(value: float, **more: object) -> dict[str, object]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, **more}


RESULTS = RunResults(
    complete=True,
    methods={"VAR": {}, "VCD": {}},
    benchmarks={
        "pope": {
            "plain": {"figures": {"all": {"questions": 9, "own": {"plain": {"accuracy": figure(0.5)}}}}},
            "methods": {
                "VAR": {
                    "figures": {
                        "all": {
                            "questions": 9,
                            "own": {
                                "plain": {"accuracy": figure(0.5)},
                                "edited": {"accuracy": figure(0.7)},
                                "difference": {"accuracy": figure(0.2, mcnemar_p=0.04, holm_p=0.08)},
                                "statistics": {"items": 9},
                            },
                        }
                    }
                },
                "VCD": {"error": "<b>no</b> vision"},
            },
        }
    },
)


def test_results_of_a_run_have_a_row_per_figure():
    pytest.importorskip("pandas")
    frame = RESULTS.to_dataframe()
    assert frame.condition.tolist() == ["plain", "VAR", "VCD"]
    assert frame.value.tolist()[:2] == [0.5, 0.7]
    changed = frame[frame.condition == "VAR"].iloc[0]
    assert (changed.difference, changed.p, changed.holm_p, changed.questions) == (0.2, 0.04, 0.08, 9)
    assert (changed.benchmark, changed.split, changed.scorer, changed.figure) == (
        *("pope", "all", "own", "accuracy"),
    )
    assert frame.error.tolist()[2] == "<b>no</b> vision"
    assert repr(RESULTS) == "RunResults(benchmarks pope; methods VAR, VCD; complete)"
    assert "&lt;b&gt;no" in RESULTS._repr_html_()
    assert json.loads(json.dumps(RESULTS)) == RESULTS


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(regaze.RegazeError, match=r"has no results\.json"):
        load_results(tmp_path)
