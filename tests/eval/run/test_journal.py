"""The journal of a run: answers are read again, whatever happened to the process, the file or the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from regaze.errors import InputError
from regaze.eval.run.journal import Batch, Journal, locked_folder, read_batches


def test_a_line_that_was_cut_off_anywhere_is_not_read_and_not_built_upon(tmp_path):
    batches = [
        Batch("plain", "pope", {"k1": "Yes — ünï"}),
        Batch("var", "chair", {"k2": "Two dogs."}),
        Batch("plain", "pope", {"k3": "No"}, {"k4": "broken"}, {"seconds": 1.0}, "switched off"),
    ]
    with Journal(tmp_path) as file:
        for batch in batches:
            file.append(batch)
    path = tmp_path / "journal.0.jsonl"
    whole = path.read_bytes()
    assert list(read_batches(tmp_path)) == batches
    for end in range(whole[:-1].rindex(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:end])
        assert list(read_batches(tmp_path)) == batches[:2]
        with Journal(tmp_path) as file:
            file.append(batches[2])
        assert path.read_bytes() == whole


def test_a_line_is_whole_on_disk_when_append_returns(tmp_path, monkeypatch):
    path = tmp_path / "journal.0.jsonl"
    synced = []
    with Journal(tmp_path) as file:
        monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(path.read_bytes()))
        for number in (1, 2):
            file.append(Batch("plain", "pope", {f"k{number}": "Yes"}))
            assert len(synced) == number
            assert synced[-1].count(b"\n") == number
            assert synced[-1] == path.read_bytes()


def test_the_order_is_that_of_the_files_and_their_lines(tmp_path):
    for rank in (3, 1, 2, 0):
        with Journal(tmp_path, rank) as file:
            for number in (1, 2):
                file.append(Batch("plain", "pope", {f"{rank}.{number}": ""}))
    keys = [key for batch in read_batches(tmp_path) for key in batch.answers]
    assert keys == [f"{rank}.{number}" for rank in range(4) for number in (1, 2)]


def test_the_journals_of_all_processes_are_read(tmp_path):
    for rank in (2, 0, 10):
        with Journal(tmp_path, rank) as file:
            file.append(Batch("plain", "pope", {f"k{rank}": "Yes"}))
    assert {key for batch in read_batches(tmp_path) for key in batch.answers} == {"k0", "k2", "k10"}


BATCH = '{"condition": "plain", "benchmark": "pope", "answers": %s}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "Expecting value: line 1 column 1 .*"),
        ("[1]", ".* must be a mapping, not list"),
        ('{"condition": "plain"}', ".* missing 2 required positional arguments: 'benchmark' and 'answers'"),
        ('{"bogus": 1}', ".* unexpected keyword argument 'bogus'"),
        (BATCH % "[]", "answers and errors must be objects"),
        (BATCH % '{}, "errors": ["e"]', "answers and errors must be objects"),
        (BATCH % '{"k": 7}', "a field has another type"),
        (BATCH % '{}, "errors": {"k": null}', "a field has another type"),
        (BATCH % '{}, "sharing": 7', "a field has another type"),
        (BATCH % '{}, "cost": 7', "a field has another type"),
        ('{"condition": 1, "benchmark": "pope", "answers": {}}', "a field has another type"),
        ('{"condition": "plain", "benchmark": 1, "answers": {}}', "a field has another type"),
        (BATCH % '{}, "checksum": "0123456789abcdef"', "its checksum does not fit: it was changed"),
        ("[" * 9999, ".*(recursion|Expecting value).*"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, reason):
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k1": "Yes"}))
    path = tmp_path / "journal.0.jsonl"
    path.write_text(path.read_text() + line + "\n")
    message = rf"journal\.0\.jsonl:2 is damaged \({reason}\); remove the line to ask its questions again$"
    with pytest.raises(InputError, match=message):
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


def test_a_line_is_written_as_it_always_was(tmp_path):
    """Also the checksum: journals of this version are resumed by later ones."""
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k": "Ja — ünï"}, cost={"seconds": 1.5}))
    assert (tmp_path / "journal.0.jsonl").read_text(encoding="utf-8") == (
        '{"condition": "plain", "benchmark": "pope", "answers": {"k": "Ja — ünï"}, "errors": {}, '
        '"cost": {"seconds": 1.5}, "sharing": null, "checksum": "679c1f2d18410572"}\n'
    )


def test_lines_of_earlier_versions_have_no_checksum(tmp_path):
    (tmp_path / "journal.0.jsonl").write_text(
        '{"condition": "plain", "benchmark": "pope", "answers": {"k": "No"}}\n'
    )
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k2": "Yes"}))
    assert [batch.answers for batch in read_batches(tmp_path)] == [{"k": "No"}, {"k2": "Yes"}]


def test_a_journal_may_be_longer_than_other_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_MAX_BYTES", "10")
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k": "Yes"}))
    assert [batch.answers for batch in read_batches(tmp_path)] == [{"k": "Yes"}]


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


def test_a_batch_that_does_not_fit_on_the_disk_is_an_input_error_and_not_there(tmp_path, monkeypatch):
    def fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k": "No"}))
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match="cannot be used: No space left on device"):
            file.append(Batch("plain", "pope", {"k2": "No"}))
    assert [batch.answers for batch in read_batches(tmp_path)] == [{"k": "No"}]


def test_a_folder_is_locked_by_one_process(tmp_path):
    refusal = r"out is being written by another process: wait for its end, or give --output another folder"
    with (
        locked_folder(tmp_path / "out"),
        pytest.raises(InputError, match=refusal),
        locked_folder(tmp_path / "out"),
    ):
        pass
    with locked_folder(tmp_path / "out"):
        pass


def test_the_lock_of_a_killed_process_does_not_hold(tmp_path):
    holder = (
        "import sys, time, pathlib, filelock\n"
        "lock = filelock.FileLock(pathlib.Path(sys.argv[1]) / '.lock'); lock.acquire()\n"
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="another process"), locked_folder(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked_folder(tmp_path):
        pass


def test_answers_are_stored_unchanged(tmp_path):
    text = 'a "quoted"\nline\u2028 with \\ and \x00 and 🙂'
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k": text}))
    assert next(iter(read_batches(tmp_path))).answers == {"k": text}
    assert json.loads((tmp_path / "journal.0.jsonl").read_bytes())["answers"]["k"] == text


def test_half_a_character_in_an_answer_is_stored(tmp_path):
    """A tokenizer may decode half of a surrogate pair; the answer is not lost for it."""
    with Journal(tmp_path) as file:
        file.append(Batch("plain", "pope", {"k": "\ud83d"}))
    assert next(iter(read_batches(tmp_path))).answers == {"k": "\ud83d"}


def test_a_cost_that_is_no_number_is_refused_and_nothing_is_written(tmp_path):
    with Journal(tmp_path) as file, pytest.raises(ValueError, match="not JSON compliant"):
        file.append(Batch("plain", "pope", {"k": "Yes"}, cost={"seconds": float("nan")}))
    assert (tmp_path / "journal.0.jsonl").read_bytes() == b""


def test_a_journal_in_a_folder_that_is_gone_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=rf"^output folder {tmp_path}/gone cannot be used: No such file"):
        Journal(tmp_path / "gone")
