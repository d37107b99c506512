"""CHAIR's pickle is read without running it: as Python reads plain data, and nothing else."""

from __future__ import annotations

import os
import pickle
import random
import sys
from collections import OrderedDict, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regaze.errors import InputError
from regaze.eval.benchmarks.chair.plain_pickle import PlainObject, load_plain

CLASS = ("__main__", "CHAIR")
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text() | st.integers()
plain = st.recursive(
    scalars | st.sets(keys, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


def load(data):
    return load_plain(data, "f", [CLASS])


@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_data_are_what_was_pickled(value, protocol):
    assert load(pickle.dumps(value, protocol)) == value


class CHAIR:
    """Stands in for the class that stand-alone ports pickle."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_of_the_class_is_its_attributes(monkeypatch, protocol):
    monkeypatch.setattr(CHAIR, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "CHAIR", CHAIR, raising=False)
    evaluator = CHAIR()
    evaluator.imid_to_objects = defaultdict(set, {9: {"cat"}, 139: {"dog", "cat"}})
    evaluator.order = OrderedDict(a=[1])
    loaded = load(pickle.dumps(evaluator, protocol))
    assert loaded == PlainObject({"imid_to_objects": {9: {"cat"}, 139: {"dog", "cat"}}, "order": {"a": [1]}})


class Calls:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


CALLS = [
    b"cos\nsystem\n(S'touch PATH'\ntR.",
    b"(S'touch PATH'\nios\nsystem\n.",
]


def hostile(path):
    """Pickles that run a program that makes a file, or that fill memory or time."""
    touch = f"open({str(path)!r}, 'w')"
    yield from (each.replace(b"PATH", str(path).encode()) for each in CALLS)
    for protocol in PROTOCOLS:
        yield pickle.dumps(Calls(eval, (touch,)), protocol)
        yield pickle.dumps(Calls(os.system, (f"touch {path}",)), protocol)
        yield pickle.dumps(Calls(getattr, (b"", "join")), protocol)
        yield pickle.dumps({(1, 2): 3}, protocol)  # a key that may take long to be hashed
        yield pickle.dumps([b"bytes"], protocol)
    yield b"\x80\x04\x8e" + (2**62).to_bytes(8, "little")  # bytes of 4 EiB
    yield b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x."
    yield b"I" + b"9" * 10_000 + b"\n."
    # set(list) of the same list again and again
    yield b"\x80\x04cbuiltins\nset\n\x94](" + b"K\x01" * 1000 + b"e\x94" + b"h\x00h\x01\x85R0" * 1000 + b"."
    yield b"\x80\x04cbuiltins\nset\n\x94](" + b"K\x01" * 1000 + b"e\x94" + b"h\x00h\x01\x85R" * 1000 + b"."
    yield b"\x80\x04]\x94" + b"h\x00h\x00\x86\x94" * 50 + b"."  # a tree of shared tuples, never hashed
    yield from (b"", b".", b"K\x01", b"(", b"h\x05.", b"N" * 50, b"R.", b"b.", b"\x85.", b"a.", b"(e.")


def test_no_pickle_runs_anything_or_fills_memory(tmp_path):
    count = 0
    for data in hostile(tmp_path / "made"):
        with pytest.raises(InputError, match=r"^f is no pickle of plain data: ") as caught:
            load(data)
        assert "\n" not in str(caught.value)
        count += 1
    assert count > 40
    assert list(tmp_path.iterdir()) == []


def test_damaged_pickles_end_in_one_line():
    draw = random.Random(0)
    whole = pickle.dumps({"a": [1, 2.5, {"x", "y"}], "b": defaultdict(list, {3: [None, True]})})
    for _ in range(2_000):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            byte = draw.choice([draw.randrange(256), ord(draw.choice("(.0123RSbcehijopqrtu"))])
            data[draw.randrange(len(data))] = byte
        problem = ""
        try:
            load(bytes(data[: draw.randint(1, len(data))]))
        except InputError as error:
            problem = str(error)
        assert "\n" not in problem


def test_a_long_pickle_ends_in_time(monkeypatch):
    monkeypatch.setenv("REGAZE_MAX_SECONDS", "0.001")
    with pytest.raises(InputError, match=r"f took more than 0\.001 seconds"):
        load(b"(" + b"N" * 2_000_000 + b"l.")
