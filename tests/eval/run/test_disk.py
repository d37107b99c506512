"""A run on a disk that fails, that is full, or that holds something else: one error, and nothing lost."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from faulty_disk import faulty_disk
from standins import Blind, StandIn, write_pope

from regaze.errors import InputError
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.export import export_answers
from regaze.eval.report.report import write_report
from regaze.eval.run import results
from regaze.eval.run.journal import read_batches

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="disks and permissions of POSIX")


@pytest.fixture
def pope(tmp_path: Path) -> Pope:
    return write_pope(tmp_path)


def run(pope: Pope, folder: Path, *, pages: bool = True) -> StandIn:
    """What `regaze evaluate --export lmms-eval` does, without its pages if they do not matter."""
    gaze = StandIn()
    files = {"run.yaml": "benchmark: pope\n"}
    config = EvalConfig(batch_size=2)
    tasks, methods = [EvalTask(pope)], {"blind": Blind()}
    found = evaluate(gaze, tasks, methods, folder, model_name="m", config=config, files=files)
    if pages:
        write_report(found, folder)
        export_answers(folder, found, "lmms-eval")
    return gaze


def answered(folder: Path) -> list[str]:
    return [key for batch in read_batches(folder) for key in batch.answers]


def figures(folder: Path) -> object:
    found = results.read(folder)
    assert found["complete"]
    asked = found["benchmarks"]["pope"]
    return [asked["plain"]["figures"], asked["methods"]["blind"]["figures"]]


def check(pope: Pope, folder: Path, whole: Path) -> None:
    """What is left is the beginning of a run, and the rest follows."""
    before = answered(folder) if folder.is_dir() else []
    assert len(before) == len(set(before))
    assert list(folder.rglob("*.partial*")) == []
    again = run(pope, folder, pages=False)
    assert len(again.prompts) <= 10 - len(before) + 2  # and one to begin with, under each condition
    after = answered(folder)
    assert after[: len(before)] == before
    assert sorted(after) == sorted(answered(whole))
    assert (folder / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    assert figures(folder) == figures(whole)


def fail_everywhere(pope: Pope, tmp_path: Path, step: int) -> int:
    """Let each call fail in turn, alone or with those that follow; returns how many runs failed with it."""
    run(pope, tmp_path / "whole", pages=False)
    with faulty_disk(tmp_path / "count") as disk:
        run(pope, tmp_path / "count", pages=False)
    assert disk.count > 60
    failed = 0
    for at in range(1, disk.count + 1, step):
        for stays in (False, True):
            folder = tmp_path / f"failed-{at}-{stays}"
            with faulty_disk(folder, at, stays), suppress(InputError):
                failed += 1
                run(pope, folder, pages=False)
                failed -= 1
            check(pope, folder, tmp_path / "whole")
    return failed


def test_a_call_that_fails_costs_nothing(pope, tmp_path):
    assert fail_everywhere(pope, tmp_path, step=29) > 3


@pytest.mark.exhaustive
def test_no_call_that_fails_costs_anything(pope, tmp_path):
    assert fail_everywhere(pope, tmp_path, step=1) > 100


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A limit that the system keeps: a file that would be longer is refused by EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 10, 300, 500, 1000, 2000, 4000, 9000])
def test_a_disk_without_room(pope, tmp_path, size):
    run(pope, tmp_path / "whole")
    with pytest.raises(InputError, match="File too large"), largest_file(size):
        run(pope, tmp_path / "out")
    check(pope, tmp_path / "out", tmp_path / "whole")


def folder_there(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def socket_there(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/full")


@pytest.mark.parametrize("make", [folder_there, pipe, socket_there, loop, device])
@pytest.mark.parametrize("name", ["journal.0.jsonl", "journal.1.jsonl", *results.OUTPUTS, ".lock"])
def test_something_else_in_the_place_of_a_file(pope, tmp_path, monkeypatch, name, make: Callable):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    Path("out").mkdir()
    make(Path("out") / name)
    before = identity(Path("out") / name)
    gaze = StandIn()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        evaluate(gaze, [EvalTask(pope)], {}, "out", model_name="m")
    assert gaze.prompts == []
    assert identity(Path("out") / name) == before


def identity(path: Path) -> tuple[int, ...]:
    """What a path is, without its times: others read and write the system's devices."""
    found = os.lstat(path)
    return found.st_mode, found.st_ino, found.st_rdev, found.st_size


def as_nobody(work: Callable[[], object]) -> str:
    """The error of `work`, or "", in a process of a user who may do no more than others."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            work()
            text = ""
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(process, 0)
    with os.fdopen(reader) as file:
        return file.read()


@pytest.fixture
def reachable(tmp_path: Path) -> Path:
    """A folder that everybody can reach."""
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid == os.getuid() and len(each.parts) > 2:
            each.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("journal.0.jsonl", 0o000, r"journal\.0\.jsonl cannot be read: Permission denied"),
        ("journal.0.jsonl", 0o444, "output folder .* cannot be used: Permission denied"),
        ("results.json", 0o000, r"results\.json cannot be read: it belongs to somebody else"),
        (".lock", 0o444, "output folder .* cannot be used: Permission denied"),
        (".", 0o555, r"results\.json cannot be written: Permission denied"),
        (".", 0o000, "out.* cannot be used: Permission denied"),
    ],
)
def test_files_and_folders_of_other_users(pope, reachable, name, mode, message):
    folder = reachable / "out"
    run(pope, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
    before = (folder / name).stat().st_mtime_ns, (folder / "journal.0.jsonl").read_bytes()
    (folder / name).chmod(mode)
    found = as_nobody(lambda: run(pope, folder))
    (folder / name).chmod(0o777)
    assert re.fullmatch(f"InputError: .*{message}", found)  # one line
    assert before == ((folder / name).stat().st_mtime_ns, (folder / "journal.0.jsonl").read_bytes())


def test_a_damaged_results_file_is_set_aside(pope, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.json").write_text("{")
    run(pope, tmp_path / "out")
    assert (tmp_path / "out/results.1.json").read_text() == "{"
    assert json.loads((tmp_path / "out/results.json").read_text())["complete"]
