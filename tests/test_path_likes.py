"""Whatever takes a path takes a text, a Path and any other object that has one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import picture
from standins import StandIn, write_pope

from regaze import ADHH
from regaze.errors import InputError
from regaze.eval import EvalTask, Pope, evaluate
from regaze.eval.benchmarks import load_class
from regaze.eval.export import export_answers
from regaze.eval.judges import RecordedJudge, Verdicts
from regaze.eval.report.report import write_report
from regaze.eval.run import results
from regaze.interventions.retrieval_heads import read_haystack
from regaze.toolkit import Record, plot, viewer


class HasPath:
    """`os.PathLike`, and nothing else; its text is not its path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


KINDS: list[Callable[[Path], Any]] = [str, HasPath]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_and_its_files(tmp_path, kind):
    write_pope(tmp_path)
    task = EvalTask(Pope.from_files({"random": kind(tmp_path / "q.jsonl")}, kind(tmp_path / "images")))
    evaluate(StandIn(), [task], {}, kind(tmp_path / "out"), model_name="m")
    found = results.read(kind(tmp_path / "out"))
    assert [path.parent for path in write_report(found, kind(tmp_path / "out"))] == [tmp_path / "out"] * 2
    assert export_answers(kind(tmp_path / "out"), found, "vlmevalkit")[0].is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_records_figures_and_pages(gaze, tmp_path, kind):
    picture(1).save(tmp_path / "image.png")
    image = kind(tmp_path / "image.png")
    with gaze.recording(slices="image") as record:
        assert gaze.ask([image], ["What?"], max_new_tokens=1) == gaze.ask(
            [[image]], ["What?"], max_new_tokens=1
        )
    record.save(kind(tmp_path / "a.safetensors"))
    assert len(Record.load(kind(tmp_path / "a.safetensors"))) == len(record)
    plot.heatmap(record, gaze.seen(image), path=kind(tmp_path / "a.png"))
    viewer.record_page(record).save(kind(tmp_path / "a.html"))
    assert {"a.png", "a.html", "a.safetensors"} < set(os.listdir(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_other_files(tmp_path, kind):
    path = tmp_path / "file"
    path.write_text('{"hal_heads": [[0, 1]]}')
    assert ADHH.from_file(kind(path)).heads == ((0, 1),)
    assert read_haystack(kind(path)).startswith("{")
    path.write_text("")
    assert Verdicts(kind(path)).get("key") is None
    assert RecordedJudge(kind(path)).name == "recorded verdicts of file"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["popev2", "mme", "hallusionbench", "mmvp", "vstar", "textvqa", "amber", "ruler"]
)
def test_a_benchmark_without_its_files_names_the_folder(tmp_path, name, kind):
    with pytest.raises(InputError, match=str(tmp_path)):
        load_class(name).load(kind(tmp_path))
