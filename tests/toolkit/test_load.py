"""Models' folders that are damaged, hostile or no models end in one error that names what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import regaze
from regaze.demo import MODEL_DIR
from regaze.errors import BadParameterError, InputError, ModelNotFoundError
from regaze.toolkit.load import load_without_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo model."""
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "value", "error", "message"),
    [
        (("text_config", "num_hidden_layers"), 10**9, InputError, "num_hidden_layers is 1000000000, but"),
        (("text_config", "num_hidden_layers"), "two", ModelNotFoundError, "cannot load model"),
        (("text_config", "num_attention_heads"), 0, ModelNotFoundError, "cannot load model"),
        (("vision_config",), "none", ModelNotFoundError, "cannot load model"),
        (("model_type",), ["llava"], ModelNotFoundError, "cannot load model"),
        (("auto_map",), {"AutoConfig": "code.Config"}, None, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [regaze.load, load_without_weights], ids=["load", "without weights"])
def test_damaged_configurations(folder, keys, value, error, message, read):
    change(folder / "config.json", *keys, value=value)
    (folder / "code.py").write_text("raise SystemExit('code of the model was run')")
    if error is None:
        assert read(str(folder))[0].config.model_type == "llava"
        return
    with pytest.raises(error, match=message) as caught:
        read(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": ' + "9" * 5_000 + "}", "\0", "{", '{"a": 1, "a": 2}']
)
def test_configurations_that_are_no_json_are_named_with_their_line(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json:1: "):
        load_without_weights(str(folder))


def test_files_that_are_none(folder):
    for make in (lambda path: os.mkfifo(path), lambda path: os.symlink("/dev/zero", path)):
        (folder / "tokenizer.json").unlink()
        make(folder / "tokenizer.json")
        with pytest.raises(InputError, match=r"tokenizer\.json cannot be read: it is a (pipe|device)"):
            regaze.load(str(folder))


def test_an_option_that_no_model_has_is_named():
    with pytest.raises(BadParameterError, match=r"cannot load model 'demo' with colour: .*'colour'"):
        regaze.load("demo", colour="red")
