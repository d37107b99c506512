"""Files of directions: what is written is read, what is damaged is named, controls are random."""

from __future__ import annotations

import json

import pytest
import torch
from directions import LLAVA, directions, normal, vti_directions
from safetensors import safe_open
from safetensors.torch import save_file

from regaze.errors import BadParameterError, InputError
from regaze.interventions import VTI
from regaze.interventions.fitting import Directions


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "d.safetensors"
    vti_directions().save(path)
    return path


def header(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["regaze"])


def rewrite(path, tensors=None, **changes):
    """The file with other tensors, or other entries in its header."""
    about = {**header(path), **changes}
    found = Directions.load(path)
    save_file(tensors or {name: found[name] for name in found.names}, path, {"regaze": json.dumps(about)})


def test_what_is_saved_is_loaded(path):
    found, made = Directions.load(path), vti_directions()
    assert found == made
    assert hash(found) == hash(made)
    assert found.about["model"]["layers"] == 6
    assert all(torch.equal(found[name], made[name]) for name in ("text", "vision"))
    assert Directions.load(path) is found, "read once"


def test_another_file_of_the_same_name_is_read_anew(path):
    found = Directions.load(path)
    other = vti_directions(seed=5)
    path.unlink()
    other.save(path)
    assert Directions.load(path) == other != found


def test_a_method_names_file_and_content(path):
    method = VTI(directions=str(path))
    named = method.to_dict()["directions"]
    assert named == f"{path}#{Directions.load(path).digest}"
    assert VTI.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    path.unlink()
    vti_directions(seed=9).save(path)
    with pytest.raises(InputError, match="has changed"):
        VTI(directions=named)
    with pytest.raises(InputError, match="were never saved"):
        VTI.from_dict(VTI(directions=vti_directions()).to_dict())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.unlink(), "is not there: fit one with `regaze fit`"),
        (lambda p: (p.unlink(), p.mkdir()), "is not there"),
        (lambda p: p.write_bytes(b""), "is not a safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-7]), "is not a safetensors file"),
        (lambda p: p.write_bytes(b"\xff" * 64), "is not a safetensors file"),
        (lambda p: save_file({"text": normal(6, 4)}, p), "no entry 'regaze'"),
        (
            lambda p: save_file({"text": normal(6, 4)}, p, {"regaze": "{"}),
            "is damaged: the header: Invalid JSON",
        ),
        (lambda p: rewrite(p, version=2), "is damaged: version"),
        (lambda p: rewrite(p, format="mine"), "is damaged: format"),
        (lambda p: rewrite(p, method=3), "is damaged: method"),
        (lambda p: rewrite(p, model={**LLAVA, "hash": "0", "width": -1}), "is damaged: model.width"),
        (lambda p: rewrite(p, data=None), "is damaged: data"),
        (
            lambda p: rewrite(p, tensors={"text": normal(6, 192)}),
            r"it holds the tensors \['text'\] instead of",
        ),
        (
            lambda p: rewrite(p, {"text": normal(6, 9), "vision": normal(4, 65, 192)}),
            r"tensor text is \[6, 9\] F32 instead of \[6, 192\] F32",
        ),
        (
            lambda p: rewrite(p, {"text": normal(6, 192).half(), "vision": normal(4, 65, 192)}),
            "F16 instead of",
        ),
        (
            lambda p: rewrite(p, {"text": normal(6, 192) / 0, "vision": normal(4, 65, 192)}),
            "tensor text has numbers that are not finite",
        ),
    ],
)
def test_damaged_files_are_named_in_one_line(path, spoil, message):
    spoil(path)
    with pytest.raises(InputError, match=message) as error:
        VTI(directions=str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_too_large_is_not_read(path, monkeypatch):
    monkeypatch.setattr("regaze.interventions.fitting.direction_files.LARGE_BYTES", 1000)
    monkeypatch.setenv("REGAZE_MAX_BYTES", "1000")
    with pytest.raises(InputError, match="has more than 1000 bytes"):
        Directions.load(path)


def test_bases_must_be_orthonormal(tmp_path):
    basis = torch.linalg.qr(normal(6, 192, 3)).Q.mT.contiguous()
    path = tmp_path / "basis.safetensors"
    found = directions("nullu", LLAVA, {"basis": basis}, basis="basis")
    found.save(path)
    assert Directions.load(path) == found
    directions("nullu", LLAVA, {"basis": 1.1 * basis}, basis="basis").save(path)
    with pytest.raises(InputError, match="rows that are not orthonormal"):
        Directions.load(path)


def test_random_vectors_have_the_same_lengths_and_random_bases_are_bases():
    basis = torch.linalg.qr(normal(6, 192, 3)).Q.mT.contiguous()
    tensors = {"basis": basis, "vectors": normal(6, 192), "scores": normal(6, 4)}
    found = directions("nullu", LLAVA, tensors, basis="basis", scores="scores")
    drawn = found.random_like(1)
    torch.testing.assert_close(drawn["vectors"].norm(dim=-1), found["vectors"].norm(dim=-1))
    torch.testing.assert_close(
        drawn["basis"] @ drawn["basis"].mT, torch.eye(3).expand(6, 3, 3), atol=1e-5, rtol=0
    )
    assert torch.equal(drawn["scores"], found["scores"])
    assert drawn == found.random_like(1) != found.random_like(2)
    cosine = torch.cosine_similarity(drawn["vectors"], found["vectors"], dim=-1)
    assert cosine.abs().max() < 0.3
    assert drawn.about["random_seed"] == 1


def test_vectors_of_length_0_stay():
    tensors = {"text": normal(6, 192)}
    tensors["text"][2] = 0
    drawn = directions("vti", LLAVA, tensors).random_like(0)["text"]
    assert not drawn[2].any()
    assert drawn[1].any()


def test_something_else_is_no_directions():
    with pytest.raises(BadParameterError, match="directions must be"):
        VTI(directions=3)
