"""The tasks for lmms-eval, run by the harness itself on local data sets about the demo's scenes."""

# ruff: noqa: E402 (the harness may be absent)

from __future__ import annotations

import json

import pytest

pytest.importorskip("lmms_eval")
datasets = pytest.importorskip("datasets")

import regaze
from regaze.errors import InputError
from regaze.eval.benchmarks.common.download import benchmark_folder
from regaze.eval.benchmarks.dash_b import OFFICIAL, DashB
from regaze.eval.benchmarks.pope.published import SPLITS
from regaze.eval.benchmarks.pope.repope import FILE, RePope
from regaze.eval.harness import LMMS_EVAL_TASKS
from regaze.eval.harness.tasks import repope

ITEMS = 12
#: A task on a local file: all else is that of the published task.
LOCAL = """
include: {base}
task: {task}
dataset_path: parquet
dataset_name: null
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
"""


def write_local_task(folder, base, task, rows):
    """The rows as a parquet file with the images inside, as the hub has them, and the task over it."""
    columns = {name: datasets.Value("string") for name in rows[0] if name != "image"}
    table = [row | {"image": {"bytes": row["image"].read_bytes(), "path": None}} for row in rows]
    features = datasets.Features({"image": datasets.Image(), **columns})
    datasets.Dataset.from_list(table, features).to_parquet(folder / f"{task}.parquet")
    text = LOCAL.format(base=LMMS_EVAL_TASKS / base, task=task, file=folder / f"{task}.parquet")
    (folder / f"{task}.yaml").write_text(text)


def run(folder, task, model_args="pretrained=demo"):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(LMMS_EVAL_TASKS), str(folder)], include_defaults=False)
    result = simple_evaluate(
        model="regaze",
        model_args=model_args,
        tasks=[task],
        task_manager=manager,
        batch_size=4,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )
    return {name.removesuffix(",none"): value for name, value in result["results"][task].items()}


def expected(scorer, items, references):
    """The figures of the demo model's answers by the benchmark's own scorer."""
    gaze = regaze.wrap(*regaze.load("demo"))
    answers = gaze.ask([i.image for i in items], [i.question for i in items], max_new_tokens=15)
    return scorer.score(references, answers)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path


def test_the_harness_finds_the_tasks_of_the_package():
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(LMMS_EVAL_TASKS), include_defaults=False)
    assert manager.all_subtasks == ["dash_b", *sorted(f"repope_{split}" for split in SPLITS)]
    assert manager.all_groups == ["repope"]


def test_repope_scores_the_answers_by_both_label_sets(cache):
    items = RePope.of_demo(limit=ITEMS, splits=["adversarial"]).items
    folder = benchmark_folder("repope")
    folder.mkdir(parents=True)
    corrected = [
        {
            "question_id": number,
            "image": item.image.name,
            "text": item.question,
            "label": item.reference.repope,
        }
        for number, item in enumerate(items)
        if item.reference.repope is not None
    ]
    for split in SPLITS:
        (folder / FILE.format(split=split)).write_text("\n".join(map(json.dumps, corrected)))
    rows = [
        {
            "image": item.image,
            "image_source": item.image.stem,
            "question": item.question,
            "answer": item.label,
        }
        for item in items
    ]
    write_local_task(cache, "_repope", "repope_scenes", rows)
    figures = run(cache, "repope_scenes")
    wanted = expected(repope.SCORER, items, [item.reference for item in items])
    assert {name: figures[name] for name in wanted} == wanted
    assert figures["accuracy_shift"] == figures["accuracy"] - figures["pope_accuracy"] != 0


def test_dash_b_runs_and_scores_as_here(cache):
    bench = DashB.of_demo(limit=ITEMS // 2)
    rows = [{"image": item.image, "question": item.question, "answer": item.label} for item in bench.items]
    write_local_task(cache, "dash_b.yaml", "dash_b_scenes", rows)
    figures = run(cache, "dash_b_scenes")
    wanted = expected(OFFICIAL, bench.items, [item.label for item in bench.items])
    assert {name: figures[name] for name in wanted} == wanted


def test_labels_that_are_not_there_or_fit_nothing_are_named(cache):
    table = datasets.Dataset.from_list([{"image_source": "a", "question": "Is there a dog in the image?"}])
    with pytest.raises(InputError, match="run `regaze benchmarks get repope`"):
        repope.add_labels(table)
    folder = benchmark_folder("repope")
    folder.mkdir(parents=True)
    for split in SPLITS:
        line = {"image": "b.jpg", "text": "Is there a dog in the image?", "label": "yes"}
        (folder / FILE.format(split=split)).write_text(json.dumps(line))
    with pytest.raises(InputError, match="none of the 1 questions has a label of RePOPE"):
        repope.add_labels(table)
