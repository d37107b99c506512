"""Few-shot examples and earlier turns in benchmarks: what is asked, stored and told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import picture
from typer.testing import CliRunner

import regaze
from regaze.cli import app
from regaze.errors import InputError
from regaze.eval import Pope
from regaze.eval.benchmarks.common import earlier
from regaze.eval.benchmarks.common.earlier import read_few_shot, with_few_shot
from regaze.eval.run.generate import AnswerGenerator
from regaze.eval.run.requests import Condition, ImageHashes, build_requests
from regaze.toolkit.prompts.conversation import Shown
from regaze.toolkit.prompts.images import open_image


@pytest.fixture(scope="module")
def demo() -> Any:
    return regaze.wrap(*regaze.load("demo"))


def few_shot(folder: Path, name: str = "shots.json", seed: int = 0, answer: str = "Yes") -> Path:
    picture(seed, 60, 60).save(folder / "shot.png")
    shown = [{"type": "image", "path": "shot.png"}, {"type": "text", "text": "Is there a dog in the image?"}]
    messages = [{"role": "user", "content": shown}, {"role": "assistant", "content": answer}]
    (folder / name).write_text(json.dumps(messages, indent=1))
    return folder / name


def requests_of(benchmark: Any) -> Any:
    return build_requests(benchmark, Condition("model", None, {}, 0), ImageHashes()).requests


def test_the_examples_stand_before_every_question(tmp_path, demo):
    pope = Pope.of_demo(limit=3, splits=["random"])
    benchmark = with_few_shot(pope, read_few_shot(few_shot(tmp_path)))
    for item, request in zip(benchmark.items, requests_of(benchmark).values(), strict=True):
        assert request.images == (tmp_path / "shot.png", item.image)
        inputs = demo.inputs([list(request.images)], [request.question])
        text, images = "Is there a dog in the image?", [open_image(path) for path in request.images]
        given = [
            {
                "role": "user",
                "content": [{"type": "image", "image": images[0]}, {"type": "text", "text": text}],
            },
            {"role": "assistant", "content": "Yes"},
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": images[1]},
                    {"type": "text", "text": benchmark.prompt(item)},
                ],
            },
        ]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        own = demo.processor.apply_chat_template(given, return_tensors="pt", **options)
        assert torch.equal(inputs["input_ids"], own["input_ids"])
        assert torch.equal(inputs["pixel_values"], own["pixel_values"])
    assert all(isinstance(request.prompt, str) for request in requests_of(benchmark).values())
    assert [r.question for r in requests_of(pope).values()] == [pope.prompt(item) for item in pope.items]


def test_examples_whose_picture_cannot_be_read_are_refused_at_once(tmp_path):
    path = few_shot(tmp_path)
    (tmp_path / "shot.png").write_text("no picture")
    with pytest.raises(InputError, match=r"shots\.json: .*shot\.png' is not a readable image"):
        read_few_shot(path)
    (tmp_path / "shot.png").unlink()
    with pytest.raises(InputError, match=r"shots\.json: there is no image .*shot\.png'"):
        read_few_shot(path)


def test_other_examples_are_other_requests(tmp_path):
    """Their texts and the bytes of their pictures decide, and not the names of files."""
    pope = Pope.of_demo(limit=1, splits=["random"])
    keys = set(requests_of(pope))
    (key,) = requests_of(with_few_shot(pope, read_few_shot(few_shot(tmp_path))))
    (same,) = requests_of(with_few_shot(pope, read_few_shot(few_shot(tmp_path, "other.json"))))
    (no,) = requests_of(with_few_shot(pope, read_few_shot(few_shot(tmp_path, answer="No"))))
    (drawn,) = requests_of(with_few_shot(pope, read_few_shot(few_shot(tmp_path, seed=1))))
    assert key == same
    assert len({*keys, key, no, drawn}) == 4


def test_a_shared_prefix_changes_no_answer(tmp_path, demo):
    benchmark = with_few_shot(Pope.of_demo(limit=6, splits=["random"]), read_few_shot(few_shot(tmp_path)))
    requests = list(requests_of(benchmark).values())
    answers = []
    for share in (True, False):
        condition = Condition("model", None, {"max_new_tokens": 4}, 0)
        generator = AnswerGenerator(demo, condition, batch_size=6, share_prefix=share)
        found: dict[str, str] = {}
        for batch in generator.make_batches(requests):
            for part in generator.answer(batch):
                assert not part.errors
                found |= part.answers
        assert (generator.sharing.obstacle is None) == share
        answers.append(found)
    assert answers[0] == answers[1]


def test_from_the_command_line(tmp_path):
    arguments = ["evaluate", "pope", "--split", "random", "--limit", "2", "--max-new-tokens", "2", "--json"]

    def run(*more: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out"), *more])
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    plain, shots = run(), run("--few-shot", str(few_shot(tmp_path)))
    described = shots["benchmarks"]["pope"]["benchmark"]["earlier"]
    assert (described["fewest"], described["most"], len(described["sha256"])) == (2, 2, 64)
    assert "earlier" not in plain["benchmarks"]["pope"]["benchmark"]
    assert plain["configuration"] != shots["configuration"]
    assert (tmp_path / "out/results.1.json").is_file()


def test_pages_of_questions_refuse_examples(tmp_path):
    arguments = ["evaluate", "pope", "--limit", "1", "--html", "1", "--few-shot", str(few_shot(tmp_path))]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "--html shows questions without the messages before them" in result.stderr


def test_turns_before_a_question_of_a_file(tmp_path):
    picture(0, 60, 60).save(tmp_path / "a.png")
    turns = [{"role": "user", "content": "Is it day?"}, {"role": "assistant", "content": "Yes."}]
    lines = [
        {"image": "a.png", "text": "Is there a dog?", "label": "no", "messages": turns},
        {"image": "a.png", "text": "Is there a cat?", "label": "no"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = requests_of(Pope.from_files({"q": tmp_path / "q.jsonl"}, tmp_path)).values()
    assert [message.parts for message in first.question.messages[:2]] == [("Is it day?",), ("Yes.",)]
    assert first.question.messages[2].parts[0] == Shown()
    assert isinstance(second.question, str)


def test_pictures_behind_urls_are_kept_as_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    picture(0, 60, 60).save(tmp_path / "a.png")
    fetched: list[str] = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return (tmp_path / "a.png").read_bytes() if url.endswith("png") else b"<html>"

    monkeypatch.setattr(earlier, "fetch", fetch)
    for url, label in (("https://host/a.png", "yes"), ("https://host/page", "yes")):
        line = {"image": url, "text": "Is there a dog?", "label": label}
        (tmp_path / "q.jsonl").write_text(json.dumps(line))
        with pytest.raises(
            InputError, match=r"q\.jsonl:1: https://host/.* is a URL: --allow-urls lets it be fetched"
        ):
            Pope.from_files({"q": tmp_path / "q.jsonl"}, tmp_path)
        assert not [each for each in fetched if each == url]
        if url.endswith("png"):
            for _ in range(2):
                (item,) = Pope.from_files({"q": tmp_path / "q.jsonl"}, tmp_path, allow_urls=True).items
            assert item.image.read_bytes() == (tmp_path / "a.png").read_bytes()
    assert fetched == ["https://host/a.png"]
    with pytest.raises(InputError, match="is not a readable image"):
        Pope.from_files({"q": tmp_path / "q.jsonl"}, tmp_path, allow_urls=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"role": "user", "content": "a"}]',
            r"a\.json: messages before a question end with one of the assistant",
        ),
        ('{"role": "user"}', r"a\.json, message 1: expected"),
        (
            '[{"role": "user", "content": [{"type": "image"}, "a"]}, {"role": "assistant", "content": "b"}]',
            r"a\.json: a picture in a file is named by its path or its URL",
        ),
    ],
)
def test_what_is_no_file_of_examples(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_few_shot(tmp_path / "a.json")
