"""The keys of answers, and the journal that stores them."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import llava_processor, tiny_llava
from standins import Blind, write_pope

import regaze
from regaze.errors import InputError
from regaze.eval.run import journal
from regaze.eval.run.fingerprint import describe_model, model_fingerprint
from regaze.eval.run.journal import Batch, Journal, read_batches
from regaze.eval.run.requests import Condition, ImageHashes, build_requests


def keys(pope, **change):
    given = {"model": "abc", "method": Blind(), "generate_kwargs": {"max_new_tokens": 3}, "seed": 0, **change}
    return list(build_requests(pope, Condition(**given), ImageHashes()).requests)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "abd"},
        {"method": None},
        {"method": Blind(0.999)},
        {"generate_kwargs": {"max_new_tokens": 4}},
        {"generate_kwargs": {"max_new_tokens": 3, "do_sample": True}},
    ],
)
def test_the_key_of_a_request_depends_on_model_method_and_options(tmp_path, change):
    pope = write_pope(tmp_path)
    assert keys(pope) == keys(pope)
    assert len(set(keys(pope))) == 5
    assert not set(keys(pope)) & set(keys(pope, **change))


def test_the_seed_counts_where_answers_are_drawn(tmp_path):
    pope = write_pope(tmp_path)
    drawn = {"max_new_tokens": 3, "do_sample": True}
    assert keys(pope, seed=1) == keys(pope, seed=2)
    assert not set(keys(pope, seed=1, generate_kwargs=drawn)) & set(keys(pope, seed=2, generate_kwargs=drawn))


def test_the_order_of_options_and_the_name_of_a_file_do_not_count(tmp_path):
    pope = write_pope(tmp_path)
    a = keys(pope, generate_kwargs={"max_new_tokens": 3, "top_k": 1})
    assert a == keys(pope, generate_kwargs={"top_k": 1, "max_new_tokens": 3})
    before = keys(pope)
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other/elsewhere.png"
    moved.write_bytes(pope.items[0].image.read_bytes())
    object.__setattr__(pope.items[0], "image", moved)
    assert keys(pope) == before


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(tiny_llava(), llava_processor())


def test_the_fingerprint_is_of_the_model_in_memory(gaze):
    before = model_fingerprint(gaze, "a name")
    assert before == model_fingerprint(regaze.wrap(tiny_llava(), llava_processor()), "another name")
    gaze.ask(["regaze/demo/data/images/scene_000.webp"], ["What?"], max_new_tokens=2)
    assert model_fingerprint(gaze, "a name") == before  # padding leaves traces in a tokenizer
    described = describe_model(gaze, "a name")
    assert described["fingerprint"] == before
    assert (described["dtype"], described["devices"]) == ("float32", ["cpu"])


@pytest.mark.parametrize(
    "what", ["one bit", "order", "half precision", "a setting", "the template", "attention"]
)
def test_any_change_of_the_model_is_another_model(gaze, what):
    before = model_fingerprint(gaze, "m")
    model, processor = copy.deepcopy(gaze.model), copy.deepcopy(gaze.processor)
    weight = model.get_decoder().layers[3].mlp.up_proj.weight.data
    if what == "one bit":
        weight.view(-1)[7].view(torch.int32).bitwise_xor_(1)
    elif what == "order":
        weight.view(-1)[:2] = weight.view(-1)[:2].flip(0)
    elif what == "half precision":
        model = model.half()
    elif what == "a setting":
        model.generation_config.repetition_penalty = 1.3
    elif what == "attention":
        model.set_attn_implementation("eager")
    else:
        processor.chat_template += " "
    assert model_fingerprint(regaze.wrap(model, processor), "m") != before


def test_of_a_stand_in_there_is_only_the_name():
    assert model_fingerprint(SimpleNamespace(), "a") != model_fingerprint(SimpleNamespace(), "b")


def test_a_line_that_was_cut_off_anywhere_is_not_read_and_not_built_upon(tmp_path):
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k1": "Yes — ünï"}))
        file.append(Batch("plain", "pope", {"k2": "No"}, {"k3": "broken"}, {"seconds": 1.0}, "switched off"))
    path = tmp_path / "journal.0.jsonl"
    whole = path.read_bytes()
    first, second = list(read_batches(tmp_path))
    assert (second.errors, second.cost, second.sharing) == (
        {"k3": "broken"},
        {"seconds": 1.0},
        "switched off",
    )
    for end in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:end])
        assert list(read_batches(tmp_path)) == [first]
        with Journal(tmp_path) as file:
            file.append(second)
        assert path.read_bytes() == whole


def test_the_journals_of_all_processes_are_read(tmp_path):
    for rank in (2, 0, 10):
        with Journal(tmp_path, rank) as file:
            file.append(Batch("plain", "pope", {f"k{rank}": "Yes"}))
    assert {key for batch in read_batches(tmp_path) for key in batch.answers} == {"k0", "k2", "k10"}


BATCH = '{"condition": "plain", "benchmark": "pope", "answers": %s}'


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[1]",
        '{"condition": "plain"}',
        '{"bogus": 1}',
        BATCH % "[]",
        BATCH % '{"k": 7}',
        "[" * 9999,
    ],
)
def test_a_damaged_line_is_named(tmp_path, line):
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k1": "Yes"}))
    path = tmp_path / "journal.0.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"journal\.0\.jsonl:2 is damaged \(.*remove the line"):
        list(read_batches(tmp_path))


def test_a_line_that_was_changed_is_noticed_wherever_it_was(tmp_path):
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k1": "Yes", "k2": "No"}, {"k3": "e"}, {"seconds": 1.5}))
    path = tmp_path / "journal.0.jsonl"
    line = path.read_bytes()
    for place in range(len(line) - 1):
        path.write_bytes(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :])
        with pytest.raises(InputError, match=r"journal\.0\.jsonl:1 is damaged \(") as caught:
            list(read_batches(tmp_path))
        assert "\n" not in str(caught.value)


def test_lines_of_earlier_versions_have_no_checksum(tmp_path):
    (tmp_path / "journal.0.jsonl").write_text(
        '{"condition": "plain", "benchmark": "pope", "answers": {"k": "No"}}\n'
    )
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k2": "Yes"}))
    assert [batch.answers for batch in read_batches(tmp_path)] == [{"k": "No"}, {"k2": "Yes"}]


def test_a_journal_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "journal.0.jsonl").mkdir()
    with pytest.raises(InputError, match=r"journal\.0\.jsonl cannot be read: Is a directory"):
        list(read_batches(tmp_path))
    with pytest.raises(InputError, match=r"journal\.0\.jsonl cannot be written: a folder has that name"):
        Journal(tmp_path)
    (tmp_path / "journal.0.jsonl").rmdir()
    os.mkfifo(tmp_path / "journal.0.jsonl")
    with pytest.raises(InputError, match=r"journal\.0\.jsonl cannot be read: it is a pipe"):
        list(read_batches(tmp_path))
    with pytest.raises(InputError, match="a pipe has that name"):
        Journal(tmp_path)


def test_images_that_are_no_files_are_named(tmp_path):
    pope = write_pope(tmp_path)
    object.__setattr__(pope.items[0], "image", Path("/dev/zero"))
    made = build_requests(pope, Condition("m", None, {}, 0), ImageHashes())
    assert made.unreadable[0].startswith("image /dev/zero cannot be read: it is a device")


def test_a_batch_that_does_not_fit_on_the_disk_is_an_input_error_and_not_there(tmp_path, monkeypatch):
    def fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k": "No"}))
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match="cannot be used: No space left on device"):
            file.append(Batch("plain", "pope", {"k2": "No"}))
    assert [batch.answers for batch in read_batches(tmp_path)] == [{"k": "No"}]


@pytest.mark.parametrize("name", ["PIL", "tokenizers", "torch", "transformers", "regaze"])
def test_another_version_of_a_library_is_another_request(tmp_path, monkeypatch, name):
    pope = write_pope(tmp_path)
    before = keys(pope)
    monkeypatch.setattr(f"{name}.__version__", "0.0.0")
    assert not set(keys(pope)) & set(before)


def test_another_attention_backend_is_another_request(tmp_path, monkeypatch):
    pope = write_pope(tmp_path)
    monkeypatch.delenv("REGAZE_BACKEND", raising=False)
    before = keys(pope)
    monkeypatch.setenv("REGAZE_BACKEND", "auto")
    assert keys(pope) == before
    monkeypatch.setenv("REGAZE_BACKEND", "reference")
    assert not set(keys(pope)) & set(before)


def test_a_folder_is_locked_by_one_process(tmp_path):
    refusal = r"out is being written by another process: wait for its end, or give --output another folder"
    with (
        journal.locked_folder(tmp_path / "out"),
        pytest.raises(InputError, match=refusal),
        journal.locked_folder(tmp_path / "out"),
    ):
        pass
    with journal.locked_folder(tmp_path / "out"):
        pass


def test_the_lock_of_a_killed_process_does_not_hold(tmp_path):
    holder = (
        "import sys, time, pathlib, filelock\n"
        "lock = filelock.FileLock(pathlib.Path(sys.argv[1]) / '.lock'); lock.acquire()\n"
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="another process"), journal.locked_folder(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with journal.locked_folder(tmp_path):
        pass


def test_answers_are_stored_unchanged(tmp_path):
    text = 'a "quoted"\nline\u2028 with \\ and \x00 and 🙂'
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k": text}))
    assert next(iter(read_batches(tmp_path))).answers == {"k": text}
    assert json.loads((tmp_path / "journal.0.jsonl").read_bytes())["answers"]["k"] == text
