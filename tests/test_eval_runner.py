"""The runner: what it asks, what it writes and when, and what it refuses. The model is a small stand-in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from regaze.errors import InputError
from regaze.eval import Pope, run


class Blind:
    """An intervention that makes the stand-in below say no to everything."""

    def to_dict(self) -> dict[str, Any]:
        return {"method": "blind", "strength": 1.0}


class StandIn:
    """Says yes to all, no while edited; keeps what it was asked, and can fail at a given call."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[tuple[list[Any], list[str], dict[str, Any]]] = []
        self.draws: list[float] = []
        self.active: tuple[Any, ...] = ()
        self.fail_at = fail_at

    @contextmanager
    def using(self, *interventions: Any) -> Iterator[None]:
        self.active = interventions
        try:
            yield
        finally:
            self.active = ()

    def ask(self, images: Sequence[Any], questions: Sequence[str], **kwargs: Any) -> list[str]:
        if len(self.calls) == self.fail_at:
            raise RuntimeError("out of memory")
        self.calls.append((list(images), list(questions), kwargs))
        self.draws.append(torch.rand(()).item())
        return ["No" if self.active else "Yes"] * len(questions)


@pytest.fixture
def pope(tmp_path: Path) -> Pope:
    """Five questions on three images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        Image.new("RGB", (8, 8), "red").save(folder / f"{name}.png")
    rows = [("a", "yes"), ("a", "no"), ("b", "yes"), ("b", "no"), ("c", "yes")]
    lines = [
        json.dumps({"image": f"{i}.png", "text": f"{i}{n}?", "label": x}) for n, (i, x) in enumerate(rows)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    return Pope({"random": tmp_path / "q.jsonl"}, folder, suffix=" !")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_plain_and_edited_are_asked_the_same_and_scored(pope, tmp_path):
    gaze, seen = StandIn(), []
    results = run(
        gaze,
        pope,
        Blind(),
        tmp_path / "out",
        model_name="stand-in",
        batch_size=2,
        seed=7,
        progress=lambda *state: seen.append(state),
        max_new_tokens=3,
    )
    asked = [
        question for _, questions, _ in gaze.calls[2:] for question in questions
    ]  # the first two calls warm up
    assert asked == ["a0? !", "a1? !", "b2? !", "b3? !", "c4? !"] * 2
    assert all(kwargs["max_new_tokens"] == 3 for _, _, kwargs in gaze.calls)
    assert gaze.draws[2:5] == gaze.draws[5:]  # both conditions draw the same
    assert len(set(gaze.draws[2:5])) == 3

    figures = results["figures"]["random"]["official"]
    assert figures["plain"]["accuracy"]["value"] == pytest.approx(3 / 5)
    assert figures["edited"]["accuracy"]["value"] == pytest.approx(2 / 5)
    assert figures["difference"]["only_plain_correct"] == 3
    assert set(results["seconds"]) == {"plain", "edited"}
    assert results["answers_changed"] == 5
    assert seen[:3] == [("images", 1, 3), ("images", 2, 3), ("images", 3, 3)]
    assert seen[-1] == ("edited", 5, 5)

    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written["complete"] is True
    assert written["method"] == {"method": "blind", "strength": 1.0}
    assert written["model"] == "stand-in"
    assert written["seed"] == 7
    assert written["generation"] == {"batch_size": 2, "max_new_tokens": 3}
    assert written["versions"]["torch"] == torch.__version__
    # The edited answers hold no "yes", so the official precision is undefined: null, never NaN.
    assert written["figures"]["random"]["official"]["edited"]["precision"]["value"] is None
    assert "NaN" not in (tmp_path / "out/results.json").read_text()

    answers = lines(tmp_path / "out/answers.jsonl")
    assert len(answers) == 10
    assert answers[0] == {
        "condition": "plain",
        "key": "random/1",
        "image": "a.png",
        "prompt": "a0? !",
        "label": "yes",
        "answer": "Yes",
    }
    assert {row["condition"] for row in answers[5:]} == {"edited"}


def test_without_a_method_only_the_plain_model_is_asked(pope, tmp_path):
    results = run(StandIn(), pope, None, tmp_path / "out", model_name="m")
    assert results["method"] is None
    assert set(results["figures"]["random"]["harness"]) == {"plain"}
    assert len(lines(tmp_path / "out/answers.jsonl")) == 5


def test_answers_made_before_a_failure_stay(pope, tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        run(StandIn(fail_at=6), pope, Blind(), tmp_path / "out", model_name="m", batch_size=2)
    answers = lines(tmp_path / "out/answers.jsonl")
    assert [row["condition"] for row in answers] == ["plain"] * 5 + ["edited"] * 2
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written["complete"] is False
    assert written["figures"] == {}


def test_an_edit_that_cannot_work_stops_before_the_plain_model_is_asked(pope, tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        run(StandIn(fail_at=1), pope, Blind(), tmp_path / "out", model_name="m")
    assert not (tmp_path / "out/answers.jsonl").exists()


def test_a_second_run_in_the_same_folder_keeps_the_first_apart(pope, tmp_path):
    for seed in range(3):
        run(StandIn(), pope, None, tmp_path / "out", model_name="m", seed=seed)
    seeds = {
        path.name: json.loads(path.read_text())["seed"] for path in (tmp_path / "out").glob("results*.json")
    }
    assert seeds == {"results.json": 2, "results.1.json": 0, "results.2.json": 1}
    for path in (tmp_path / "out").glob("answers*.jsonl"):
        assert len(lines(path)) == 5


@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_a_bad_image_stops_before_anything_is_asked(pope, tmp_path, damage):
    path = tmp_path / "images" / "c.png"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    else:
        path.write_text("not an image")
    gaze = StandIn()
    with pytest.raises(InputError, match=r"c\.png' ?(is not a readable image|\().*q\.jsonl:5"):
        run(gaze, pope, None, tmp_path / "out", model_name="m")
    assert gaze.calls == []


def test_what_cannot_be_run_is_refused(pope, tmp_path):
    with pytest.raises(InputError, match="batch size 0"):
        run(StandIn(), pope, None, tmp_path / "out", model_name="m", batch_size=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"output folder .* cannot be used"):
        run(StandIn(), pope, None, tmp_path / "file", model_name="m")
