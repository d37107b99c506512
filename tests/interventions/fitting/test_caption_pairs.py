"""Pairs of captions: the demo's, those of files, and lines that are none."""

from __future__ import annotations

import json
import re

import pytest
from models import picture

from regaze.demo import scenes
from regaze.errors import InputError
from regaze.interventions.fitting import demo_pairs, read_pairs


def write(tmp_path, *entries):
    picture(1, 20, 20).save(tmp_path / "1.png")
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries) + "\n")
    return path


GOOD = {"image": "1.png", "value": "A dog.", "h_value": "A dog and a cat."}


def test_the_demo_has_some_about_scenes_that_no_benchmark_asks_about():
    pairs = demo_pairs()
    assert len(pairs) == 32
    assert not {pair.name for pair in pairs.items} & {scene.name for scene in scenes()}
    for pair in pairs.items:
        assert pair.image.is_file()
        assert pair.true != pair.invented
        assert pair.true.startswith("The image shows ")
        start, other = (re.sub(r" an? [a-z ]+\.$", "", text) for text in (pair.true, pair.invented))
        assert start == other, "one object differs, the last"


def test_files_of_others_are_read(tmp_path):
    path = write(tmp_path, {**GOOD, "id": 3, "co_objects": ["x"], "question": "Describe it."}, "", GOOD)
    pairs = read_pairs(path)
    assert [(p.name, p.true, p.invented, p.question) for p in pairs.items] == [
        ("1.png", "A dog.", "A dog and a cat.", "Describe it."),
        ("1.png", "A dog.", "A dog and a cat.", None),
    ]
    assert len(pairs.first(1)) == 1
    (tmp_path / "images").mkdir()
    picture(2, 20, 20).save(tmp_path / "images" / "1.png")
    assert read_pairs(path, tmp_path / "images").items[0].image.parent.name == "images"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"pairs.jsonl:2: the line: Invalid JSON"),
        (
            '{"image": "1.png", "value": "A dog."}',
            r"pairs.jsonl:2: h_value: Field required; expected such as",
        ),
        ({**GOOD, "value": 3}, r"pairs.jsonl:2: value: Input should be a valid string"),
        ({**GOOD, "value": "  "}, r"pairs.jsonl:2: value: String should match"),
        ({**GOOD, "image": "2.png"}, r"pairs.jsonl:2: there is no image .*2.png; give the folder"),
        ("[]", r"pairs.jsonl:2"),
    ],
)
def test_what_is_no_pair_is_named_with_its_line(tmp_path, line, message):
    path = write(tmp_path, GOOD, line)
    with pytest.raises(InputError, match=message):
        read_pairs(path)


def test_files_without_pairs(tmp_path):
    with pytest.raises(InputError, match="has no lines such as"):
        read_pairs(write(tmp_path, ""))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_pairs(tmp_path / "none.jsonl")
