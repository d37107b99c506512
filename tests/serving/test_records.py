"""Records of served requests: those of `gaze.recording`, and what cannot be recorded."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from regaze.errors import BadParameterError, InputError, RecordingError
from regaze.interventions import registry
from regaze.serving import records
from regaze.serving.records import file_of, options_of, packed, record_of, unpacked
from regaze.serving.worker import recorder
from regaze.serving.worker.recorder import EngineRecorder
from regaze.toolkit.record.trace import STATISTICS

#: Tokens of each answer.
TOKENS = 8
FULL = {"entropy": True, "top1": True, "lse": True}


@pytest.fixture
def config(small_config):
    return small_config


@pytest.fixture(scope="module")
def small_config():
    from transformers import LlamaConfig

    return LlamaConfig(num_hidden_layers=2)


def test_options_come_as_values_and_as_json(config):
    for asked in ({"entropy": True, "layers": [1]}, '{"entropy": true, "layers": [1]}'):
        options = options_of(asked, config)
        assert (options.masses, options.entropy, options.layers) == (True, True, (1,))
        assert unpacked(packed(options, file_of("a-1", "folder"))) == (options, "folder/a-1.safetensors")
    assert options_of(True, config) == options_of("true", config)
    assert options_of(None, config) is None
    assert options_of("false", config) is None


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"entropie": True}, RecordingError, "cannot record entropie"),
        ({"model": 1}, RecordingError, "cannot record model"),
        ({1: 1}, RecordingError, "cannot record 1"),
        ({"layers": [float("inf")]}, RecordingError, "layers must be"),
        ({"layers": [7]}, RecordingError, r"layers \[7\] do not exist"),
        (3, BadParameterError, "regaze_record is true, or options"),
    ],
)
def test_options_that_are_none_are_named(asked, error, message, config):
    with pytest.raises(error, match=message):
        options_of(asked, config)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "x" * 201, "a b"])
def test_an_id_never_leaves_the_folder(name, tmp_path):
    with pytest.raises(InputError, match="letters, digits"):
        file_of(name, tmp_path)


def test_without_a_folder_nothing_is_recorded(monkeypatch):
    monkeypatch.delenv("REGAZE_SERVING_RECORDS", raising=False)
    with pytest.raises(InputError, match="REGAZE_SERVING_RECORDS=FOLDER"):
        file_of("0")


def test_no_request_replaces_the_record_of_another(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("REGAZE_SERVING_RECORDS", str(tmp_path))
    file = records.new_file("mine")
    file.write_bytes(b"another's")
    with pytest.raises(InputError, match="is there already"):
        records.new_file("mine")
    recorder._open["inner"] = recorder._Open(None, str(file))  # admitted before the other one ended
    recorder.end_record("inner", [1])
    assert file.read_bytes() == b"another's"
    assert "was not written" in caplog.text


def test_no_error_of_a_record_leaves_it(monkeypatch, tmp_path, caplog):
    class Broken:
        def save(self, file, output_ids):
            raise ValueError("not of regaze")

    monkeypatch.setitem(recorder._open, "inner", recorder._Open(Broken(), str(tmp_path / "a")))
    recorder.end_record("inner", [1])
    assert "not of regaze" in caplog.text


@pytest.mark.parametrize(
    ("asked", "answer", "fits"),
    [
        (True, 100, True),
        ({"rows": "all", "slices": "all"}, 100, False),
        ({"rows": "all", "slices": "all", "layers": [0]}, 100, True),
        ({"rows": 600, "slices": "image"}, 1, False),
        ({"rows": 5, "slices": "image"}, 1, True),
        ({"rows": "text", "entropy": True}, 100, True),
        ({"slices": "all"}, 4000, False),
    ],
)
def test_the_size_of_a_record_is_bounded(asked, answer, fits):
    """A model of 7B parameters and a prompt with an image."""
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=32, num_attention_heads=32)
    options = options_of(asked, config)
    if fits:
        return records.check_size(options, config, 600, answer)
    with pytest.raises(RecordingError, match="at most 1024"):
        records.check_size(options, config, 600, answer)
    return None


def test_rows_before_the_last_need_the_whole_prompt(config):
    needs = {rows: EngineRecorder(options_of({"rows": rows}, config), config, None).prompt_needs
             for rows in ("last", 1, 3, "text", "all")}  # fmt: skip
    assert needs == {"last": "", 1: "", 3: "rows", "text": "rows", "all": "rows"}


# --- in engines


def serve(engine: Any, asked: Any, extra: list[Any]) -> list[Any]:
    from vllm import SamplingParams

    params = [SamplingParams(temperature=0, max_tokens=TOKENS, extra_args=each) for each in extra]
    return list(engine.generate(asked.prompts, params, use_tqdm=False))


def recorded(asked: Any, number: int, options: dict[str, Any], *methods: dict[str, Any]) -> Any:
    """The trace of `gaze.recording`."""
    gaze = asked.gaze
    inputs = gaze.inputs([[asked.images[number]]], [asked.questions[number]])
    with ExitStack() as stack, torch.inference_mode():
        if methods:
            stack.enter_context(gaze.using(*(registry.method_from_dict(each) for each in methods)))
        record = stack.enter_context(gaze.recording(**options))
        gaze.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return record[0]


def check(output: Any, want: Any, near: float = 1e-5) -> None:
    (got,) = record_of(output.request_id)
    assert got.layers == want.layers
    for name in (*STATISTICS, "row_position", "row_step", "row_active", "input_ids", "output_ids"):
        mine, wanted = getattr(got, name), getattr(want, name)
        assert (mine is None) == (wanted is None), name
        if wanted is not None:
            torch.testing.assert_close(mine, wanted, rtol=near, atol=near, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(got.tokens.roles, want.tokens.roles)
    assert (got.text, got.interventions) == (want.text, want.interventions)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_SERVING_RECORDS", str(tmp_path))
    return tmp_path


@pytest.mark.vllm
def test_records_are_those_of_transformers(engine, asked, folder):
    """Plain and edited, before and after the edit, beside requests without a record."""
    var = {"method": "var", "rho": 0.2}
    extra: list[Any] = [None] * len(asked.questions)
    extra[0] = {"regaze_record": FULL}
    extra[1] = {"regaze": var, "regaze_record": FULL | {"edited": True}}
    extra[2] = {"regaze": {"method": "pai", "gamma": 1.0}, "regaze_record": "true"}
    extra[4] = {"regaze_record": {"slices": "image", "rows": "text", "layers": [1]}}
    extra[5] = {"regaze": var}
    extra[6] = {"regaze": [{"method": "vcd"}, {"method": "icd"}], "regaze_record": FULL}
    outputs = serve(engine, asked, extra)
    check(outputs[0], recorded(asked, 0, FULL))
    check(outputs[1], recorded(asked, 1, FULL | {"edited": True}, var))
    check(outputs[2], recorded(asked, 2, {}, extra[2]["regaze"]))
    check(outputs[4], recorded(asked, 4, extra[4]["regaze_record"]))
    check(outputs[6], recorded(asked, 6, FULL, *extra[6]["regaze"]))
    assert len(list(folder.iterdir())) == 5


@pytest.mark.vllm
def test_prompts_in_pieces_give_the_same_record(start, asked, folder):
    engine = start(max_num_batched_tokens=96, block_size=32)
    options = {"rows": "all", "entropy": True}
    outputs = serve(engine, asked, [{"regaze_record": options}] * len(asked.questions))
    for number in (0, 7):
        # Keys of a prompt in pieces were summed in another order, and entropies of layer 2 show it.
        check(outputs[number], recorded(asked, number, options), near=1e-4)


@pytest.mark.vllm
def test_what_cannot_be_recorded_is_the_error_of_its_request(engine, asked, folder, monkeypatch):
    with pytest.raises(RecordingError, match="cannot record"):
        serve(engine, asked, [{"regaze_record": {"nothing": 1}}] * len(asked.questions))
    monkeypatch.delenv("REGAZE_SERVING_RECORDS")
    with pytest.raises(InputError, match="need a folder"):
        serve(engine, asked, [{"regaze_record": True}] * len(asked.questions))
    assert engine.llm_engine.get_num_unfinished_requests() == 0
