"""Which questions the damage check asks: one of the tasks, MMStar where it is at hand, the demo's."""

from __future__ import annotations

import json

import pytest

from regaze.cli.damage import find_task
from regaze.errors import InputError
from regaze.eval import EvalTask, Item, Pope
from regaze.eval.benchmarks.mmstar.benchmark import Mmstar

ROW = {
    "index": 7,
    "question": "Which?\nOptions: A: dog, B: cat",
    "answer": "B",
    "category": "math",
    "l2_category": "geometry",
}


@pytest.fixture(scope="module")
def tasks():
    return [EvalTask(Pope.of_demo(limit=2), {"max_new_tokens": 3})]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path))
    return tmp_path / "benchmarks/mmstar"


def write(folder, row):
    folder.mkdir(parents=True)
    (folder / "MMStar.jsonl").write_text(json.dumps(row))


def test_the_demo_is_always_at_hand(tasks):
    task = find_task(tasks, "demo", None, None)
    assert task.benchmark == Mmstar.of_demo()
    assert task.generate_kwargs == {"max_new_tokens": 3}
    assert len(find_task(tasks, "demo", None, 5).benchmark.items) == 5


def test_other_models_are_asked_mmstar_where_it_is_at_hand(tasks, cache, capsys):
    assert find_task(tasks, "some/model", None, None) is None
    assert "no damage check: MMStar is not at hand" in capsys.readouterr().err
    write(cache, ROW)
    assert [item.id for item in find_task(tasks, "some/model", None, None).benchmark.items] == ["7"]
    (cache / "MMStar.jsonl").write_text("{}")
    assert find_task(tasks, "some/model", None, None) is None
    assert "no damage check: " in capsys.readouterr().err


def test_a_folder_that_is_given_is_read_or_refused(tasks, tmp_path):
    write(tmp_path / "mine", ROW)
    assert len(find_task(tasks, "demo", str(tmp_path / "mine"), None).benchmark.items) == 1
    with pytest.raises(InputError, match=r"has no mmstar\.parquet"):
        find_task(tasks, "demo", str(tmp_path), None)


def test_mmstar_among_the_benchmarks_is_its_own_check_and_texts_have_none(tasks):
    own = EvalTask(Mmstar.of_demo(limit=3))
    assert find_task([*tasks, own], "demo", None, None) is own
    texts = Pope((Item("1", "random", None, "Is it?", "yes", reference="yes"),))
    assert find_task([EvalTask(texts)], "demo", None, None) is None
