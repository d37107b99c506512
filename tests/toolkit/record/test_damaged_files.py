"""Whatever a file holds, `Record.load` gives a record that can be shown, or raises RecordingError."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import time

import pytest
import torch
from damaged_records import damage, small_record
from safetensors.torch import load, save

from regaze import Record
from regaze.errors import RecordingError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("record") / "record.safetensors"
    small_record().save(path)
    return path.read_bytes()


def refusal(path) -> str | None:
    """Why a file is no record; None for one that can be shown."""
    try:
        record = Record.load(path)
    except RecordingError as error:
        return str(error)
    assert repr(record).startswith("Record: ")
    return None


def load_damaged(whole: bytes, path, cases: int, seed: int) -> int:
    """How many of the damaged files are refused; the others can be shown."""
    rng, refused = random.Random(seed), 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(cases):
        path.write_bytes(damage(whole, rng))
        start = time.perf_counter()
        message = refusal(path)
        refused += message is not None
        assert message is None or (message.isprintable() and len(message) < 600), f"case {number}: {message}"
        assert time.perf_counter() - start < 10, f"case {number}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500 << 10, "over 500 MiB"
    return refused


def test_a_whole_file_comes_back(whole, tmp_path):
    (tmp_path / "record").write_bytes(whole)
    record, again = small_record(), Record.load(tmp_path / "record")
    assert again.header == record.header
    for old, new in zip(record, again, strict=True):
        assert repr(old) == repr(new)
        assert (old.layers, old.text, old.interventions) == (new.layers, new.text, new.interventions)
        assert old.tokens.views == new.tokens.views
        assert torch.equal(old.image_maps(), new.image_maps())
    assert torch.equal(record[1].cross.masses, again[1].cross.masses)


def test_hundreds_of_damaged_files(whole, tmp_path):
    assert load_damaged(whole, tmp_path / "record", 500, 0) > 250


@pytest.mark.exhaustive
def test_ten_thousand_damaged_files(whole, tmp_path):
    assert load_damaged(whole, tmp_path / "record", 10_000, 1) > 5_000


def changed(whole: bytes, path, header=None, **tensors) -> None:
    """Write the file with fields of its header or its first trace, or tensors, replaced."""
    end = 8 + int.from_bytes(whole[:8], "little")
    own = json.loads(json.loads(whole[8:end])["__metadata__"]["regaze"])
    for name, value in (header or {}).items():
        (own["traces"][0] if name in own["traces"][0] else own)[name] = value
    everything = load(whole) | {f"0.{name.replace('__', '.')}": tensor for name, tensor in tensors.items()}
    everything = {name: tensor for name, tensor in everything.items() if tensor is not None}
    path.write_bytes(save(everything, {"regaze": json.dumps(own)}))


VIEW = {"grid": [2, 3], "image": 0, "box": None, "frame": None}
PICTURE = {"size": [8, 5], "seen": None, "window": [0.0, 0.0, 1.0, 1.0]}


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({"format": 1}, {}, "it has record format 1, this version reads 2"),
        ({"layers": [0, 3, 5]}, {}, r"0\.entropy is \[2, 2, 3, 4\] F32 instead of \[3, 2, any|3, 2, 3, 4\]"),
        ({"layers": "03"}, {}, r"traces\.0\.layers: Input should be a valid"),
        ({"layers": [10**30, 1]}, {}, r"traces\.0\.layers\.0: "),
        ({"text": [["a"]]}, {}, "text is of 1 samples instead of 2"),
        ({"views": [[VIEW]]}, {}, "views are of 1 samples instead of 2"),
        (
            {"views": [[VIEW | {"grid": [10**9, 10**9]}]] * 2},
            {},
            "grid of 1000000000 x 1000000000, but 6 cells",
        ),
        ({"views": [[VIEW | {"box": ["NaN", 0, 1, 1]}]] * 2}, {}, r"views\.0\.0\.box\.0"),
        ({"views": [[VIEW | {"box": [0.5, 0.0, 0.5, 1.0]}]] * 2}, {}, r"views\.0\.0\.box: "),
        ({"views": [[VIEW | {"box": [0.0, 0.0, 1e300, 1.0]}]] * 2}, {}, r"views\.0\.0\.box\.2: "),
        ({"views": [[VIEW | {"picture": PICTURE | {"size": [0, 5]}}]] * 2}, {}, r"picture\.size\.0: "),
        ({"views": [[VIEW | {"picture": PICTURE | {"window": [1.0, 0.0, 0.0, 1.0]}}]] * 2}, {}, "window: "),
        ({}, {"row_step": None}, r"tensor 0\.row_step is missing"),
        ({}, {"row_step": torch.zeros(5, dtype=torch.int64)}, r"row_step is \[5\] I64 instead of \[4\] I64"),
        ({}, {"row_position": torch.tensor([0, 1, 2, -3])}, "row_position has numbers -3..2"),
        ({}, {"masses": torch.zeros(2, 2, 3, 4, 9)}, r"masses is \[2, 2, 3, 4, 9\]"),
        ({}, {"masses": torch.zeros(2, 2, 3, 4, 7).half()}, "F16 instead of"),
        ({}, {"tokens__roles": torch.full((2, 9), 9, dtype=torch.uint8)}, "roles has numbers 9..9, not 0..6"),
        ({}, {"tokens__cell": torch.zeros(2, 9, dtype=torch.int32)}, r"grid of 2 x 3"),
        ({}, {"slice_columns": torch.full((2, 6), 9)}, "slice_columns has numbers 9..9, not -1..8"),
    ],
)
def test_what_is_wrong_is_named(whole, tmp_path, header, tensors, message):
    changed(whole, tmp_path / "record", header, **tensors)
    with pytest.raises(RecordingError, match=message):
        Record.load(tmp_path / "record")


def test_other_objects_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", "a\0b", tmp_path / "absent"):
        with pytest.raises(RecordingError, match="is not a"):
            Record.load(path)


def sparse_record(whole: bytes, path, rows: int) -> None:
    """A record of one layer and head with masses of so many rows, none of which is on the disk."""
    own = json.loads(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["regaze"])
    own["traces"] = [{"layers": [0], "views": None, "text": None, "interventions": [], "cross": None}]
    tensors, end = {}, 0
    shapes = {"row_active": ("BOOL", [1, rows]), "row_position": ("I64", [rows]), "row_step": ("I64", [rows])}
    for name, (dtype, shape) in {**shapes, "masses": ("F32", [1, 1, 1, rows, 7])}.items():
        size = {"BOOL": 1, "I64": 8, "F32": 4}[dtype] * math.prod(shape)
        tensors[f"0.{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps({"__metadata__": {"regaze": json.dumps(own)}, **tensors}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + end)


def test_a_record_larger_than_the_limit_is_refused_before_it_is_read(whole, tmp_path, monkeypatch):
    sparse_record(whole, tmp_path / "record", 10)
    assert Record.load(tmp_path / "record")[0].masses.shape == (1, 1, 1, 10, 7)
    sparse_record(whole, tmp_path / "record", 100_000_000)  # 4.5 GB
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        RecordingError, match="record' has more than 4294967296 bytes; set REGAZE_MAX_BYTES to"
    ):
        Record.load(tmp_path / "record")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun < 50 << 10
    monkeypatch.setenv("REGAZE_MAX_BYTES", "many")
    with pytest.raises(RecordingError, match="REGAZE_MAX_BYTES"):
        Record.load(tmp_path / "record")


def test_a_header_larger_than_the_limit_is_refused(whole, tmp_path):
    (tmp_path / "record").write_bytes((2**27).to_bytes(8, "little") + whole[8:])
    with pytest.raises(RecordingError, match="has more than 67108864 bytes in its header"):
        Record.load(tmp_path / "record")
