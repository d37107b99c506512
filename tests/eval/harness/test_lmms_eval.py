"""`lmms_eval --model regaze`: a POPE-like task over the shipped scenes, run by the harness itself."""

# ruff: noqa: E402 (the harness may be absent)

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")
datasets = pytest.importorskip("datasets")

import regaze
from regaze.demo import IMAGE_DIR, questions_file
from regaze.errors import BadParameterError, InputError
from regaze.eval.harness.lmms_eval import RegazeVLM, manifest

ITEMS = 8
TASK = """
task: scenes
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 5, temperature: 0, do_sample: false, until: ["."]}}
process_results: !function utils.score
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
def visual(doc):
    return [doc["image"].convert("RGB")]


def score(doc, results):
    return {"right": float(results[0].lower() == doc["answer"])}
"""


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in questions_file("adversarial").open()][:ITEMS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rows) -> Path:
    """The questions as a parquet file with the images inside, as the hub has them, and the task over it."""
    folder = tmp_path_factory.mktemp("lmms_eval")
    features = {"image": datasets.Image()} | dict.fromkeys(("question", "answer"), datasets.Value("string"))
    table = [
        {
            "image": {"bytes": (IMAGE_DIR / row["image"]).read_bytes(), "path": None},
            "question": row["text"],
            "answer": row["label"],
        }
        for row in rows
    ]
    datasets.Dataset.from_list(table, datasets.Features(features)).to_parquet(folder / "scenes.parquet")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "utils.py").write_text(UTILS)
    (folder / "tasks" / "scenes.yaml").write_text(TASK.format(file=folder / "scenes.parquet"))
    return folder


def run(folder, monkeypatch, batch_size=3, use_cache=None, **arguments):
    """The harness's result for the model arguments."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    text = ",".join(f"{name}={value}" for name, value in {"pretrained": "demo", **arguments}.items())
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    return simple_evaluate(
        model="regaze",
        model_args=text,
        tasks=["scenes"],
        task_manager=manager,
        batch_size=batch_size,
        use_cache=use_cache,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )


def answers(result):
    samples = sorted(result["samples"]["scenes"], key=lambda sample: sample["doc_id"])
    return [answer for sample in samples for answer in sample["filtered_resps"]]


def expected(rows, *methods):
    gaze = regaze.wrap(*regaze.load("demo"))
    with gaze.using(*methods):
        said = gaze.ask(
            [IMAGE_DIR / row["image"] for row in rows], [row["text"] for row in rows], max_new_tokens=5
        )
    return [answer.split(".")[0].strip() for answer in said]


def test_the_harness_finds_the_model():
    from lmms_eval.models import ModelManifest, get_model

    assert isinstance(manifest(), ModelManifest)
    assert get_model("regaze") is RegazeVLM


def test_a_task_gets_the_models_answers_and_a_method_changes_them(folder, rows, monkeypatch):
    plain = run(folder, monkeypatch)
    assert answers(plain) == expected(rows)
    right = [a.lower() == row["label"] for a, row in zip(answers(plain), rows, strict=True)]
    assert plain["results"]["scenes"]["right,none"] == sum(right) / ITEMS
    heads = [[layer, head] for layer in range(4) for head in range(3)]
    edited = run(folder, monkeypatch, method="knockout", heads=heads)
    assert answers(edited) == expected(rows, regaze.HeadKnockout(heads=tuple(map(tuple, heads))))
    assert answers(edited) != answers(plain)


class Request:
    """One of the harness's requests."""

    def __init__(self, *args):
        self.args = args


@pytest.fixture
def model(rows):
    lm = RegazeVLM("demo", device="cpu", batch_size=2)
    lm.task_dict = {"scenes": {"test": rows}}
    return lm


def visual(row):
    from PIL import Image

    return [Image.open(IMAGE_DIR / row["image"]).convert("RGB")]


def test_log_likelihoods_prefer_what_the_model_says(model, rows):
    said = expected(rows[:3])
    requests = [
        Request(f"<image>\n{row['text']}", f" {answer}", visual, i, "scenes", "test")
        for i, row in enumerate(rows[:3])
        for answer in ("Yes", "No")
    ]
    scores = model.loglikelihood(requests)
    for i, answer in enumerate(said):
        (yes, yes_greedy), (no, no_greedy) = scores[2 * i : 2 * i + 2]
        assert (yes < no) == (answer == "Yes")  # lmms-eval takes the least
        assert (yes_greedy, no_greedy) == (answer == "Yes", answer == "No")


def test_a_method_that_asks_again_answers_but_scores_nothing(rows):
    lm = RegazeVLM("demo", device="cpu", method="carve")
    lm.task_dict = {"scenes": {"test": rows}}
    request = Request(rows[0]["text"], {"max_new_tokens": 3, "temperature": 0}, visual, 0, "scenes", "test")
    assert lm.generate_until([request])[0]
    with pytest.raises(BadParameterError, match="no log-likelihoods"):
        lm.loglikelihood([Request(rows[0]["text"], "Yes", visual, 0, "scenes", "test")])


def test_a_video_and_several_rounds_are_refused(model, rows):
    request = Request("What happens?", {}, lambda doc: ["film.mp4"], 0, "scenes", "test")
    with pytest.raises(InputError, match=r"this task shows str: 'film\.mp4'"):
        model.generate_until([request])
    with pytest.raises(InputError, match="several rounds"):
        model.generate_until_multi_round([request])


def test_an_unknown_argument_is_refused_before_the_model_is_loaded():
    with pytest.raises(BadParameterError, match="unknown bta"):
        RegazeVLM("no-such-model", method="pai", bta=0.1)


@pytest.mark.parametrize("size", ["auto", "0", "some"])
def test_a_batch_size_that_is_no_number_is_refused_before_the_model_is_loaded(folder, monkeypatch, size):
    with pytest.raises(BadParameterError, match=f"batch_size={size}: expected a whole number"):
        run(folder, monkeypatch, pretrained="no-such-model", batch_size=size)


def test_the_harness_cache_tells_methods_apart(folder, rows, monkeypatch):
    """Its key holds the arguments of the model; answers of one knockout are not another's."""
    cache = str(folder / "answers")
    heads = [[layer, head] for layer in range(4) for head in range(3)]
    edited = run(folder, monkeypatch, use_cache=cache, method="knockout", heads=heads)
    plain = run(folder, monkeypatch, use_cache=cache)
    other = run(folder, monkeypatch, use_cache=cache, method="knockout", heads=[[0, 0], [0, 3]])
    assert answers(edited) == expected(rows, regaze.HeadKnockout(heads=tuple(map(tuple, heads))))
    assert answers(plain) == expected(rows)
    assert answers(other) == expected(rows, regaze.HeadKnockout(heads=((0, 0), (0, 3))))
