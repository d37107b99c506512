"""Files are replaced whole and grow by whole lines, whatever the disk does; other things are left alone."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regaze import writing
from regaze.errors import InputError
from regaze.writing import LineLog, make_folder, replace_file, replacing, require_writable

CALLS = ("open", "write", "fsync", "close", "replace")
FULL = {"ENOSPC": "No space left on device", "EIO": "Input/output error", "EDQUOT": "quota exceeded"}


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: str) -> None:
    """Let the call of that number fail; a failing write has written a half, a failing close has closed."""
    real: Callable[..., Any] = getattr(os, call)
    count = iter(range(1, 1000))

    def failing(*arguments: Any) -> Any:
        if next(count) != number:
            return real(*arguments)
        if call == "write":
            real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        if call == "close":
            real(*arguments)
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(writing.os, call, failing)


def test_a_file_is_replaced_with_its_text_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    replace_file(path, "a\r\nb ü \ud83d\n")
    assert path.read_bytes() == b"a\r\nb \xc3\xbc \\ud83d\n"
    replace_file(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("code", FULL)
@pytest.mark.parametrize(
    ("call", "number"), [("open", 1), ("write", 1), ("close", 1), ("open", 2), ("fsync", 1), ("replace", 1)]
)
def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch, call, number, code):
    path = tmp_path / "a.txt"
    replace_file(path, "before")
    fail_at(monkeypatch, call, number, code)
    with pytest.raises(InputError, match=rf"a\.txt cannot be written: .*{FULL[code]}"):
        replace_file(path, "after")
    monkeypatch.undo()
    assert (path.read_text(), os.listdir(tmp_path)) == ("before", ["a.txt"])
    assert writing.unfinished == set()


def test_an_error_of_the_folder_comes_after_the_file(tmp_path, monkeypatch):
    fail_at(monkeypatch, "fsync", 2, "EIO")
    with pytest.raises(InputError, match="Input/output error"):
        replace_file(tmp_path / "a.txt", "after")
    assert (tmp_path / "a.txt").read_text() == "after"


def test_file_and_folder_are_on_disk_when_the_name_is_there(tmp_path, monkeypatch):
    """fsync of the file, then the rename, then fsync of its folder."""
    real, events = {name: getattr(os, name) for name in ("fsync", "replace")}, []

    def fsync(descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        events.append("folder" if stat.S_ISDIR(mode) else "file")
        real["fsync"](descriptor)

    def replace(old: Path, new: Path) -> None:
        events.append("rename")
        real["replace"](old, new)

    monkeypatch.setattr(writing.os, "fsync", fsync)
    monkeypatch.setattr(writing.os, "replace", replace)
    replace_file(tmp_path / "a.txt", "text")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_code_that_fails_while_it_writes_leaves_nothing(tmp_path, error):
    def write() -> None:
        with replacing(tmp_path / "a.png") as partial:
            assert partial.suffix == ".png"
            assert writing.unfinished == {str(partial)}
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == []
    assert writing.unfinished == set()


def test_a_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "a.txt").symlink_to("far/b.txt")
    replace_file(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "far/b.txt").read_text() == "text"


def make_object(path: Path, kind: str) -> None:
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a device":
        path.symlink_to("/dev/full")
    else:
        path.symlink_to(path.name)


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a socket", "a device", "symbolic links"])
def test_other_things_are_left_alone_and_named(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    make_object(Path("a.txt"), kind)
    before = os.lstat("a.txt")
    for write in (lambda: replace_file("a.txt", "text"), lambda: LineLog("a.txt")):
        with pytest.raises(InputError, match=rf"a\.txt cannot be .*{kind}"):
            write()
    assert os.lstat("a.txt") == before
    assert os.listdir() == ["a.txt"]


def test_whatever_has_the_provisional_name_does_not_matter(tmp_path):
    for kind, make in {"a file": Path.touch, "a pipe": os.mkfifo}.items():
        make(tmp_path / ".a.partial.txt")
        replace_file(tmp_path / "a.txt", kind)
        assert (tmp_path / "a.txt").read_text() == kind
        assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert make_folder(str(tmp_path / "a/b")).is_dir()
    with pytest.raises(InputError, match="file/b cannot be written: Not a directory"):
        make_folder(tmp_path / "file/b")


def test_what_can_be_written_is_known_without_making_anything(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere/else")
    for name in ("new", "file", "some/folders/new", "link"):
        require_writable(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    require_writable("new")
    assert sorted(os.listdir()) == ["file", "link"]
    with pytest.raises(InputError, match=r"^file/new/x cannot be written: file is no folder$"):
        require_writable("file/new/x")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"^loop/x cannot be written: loop is no folder"):
        require_writable("loop/x")
    for name in ("file", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        monkeypatch.setattr(os, "access", lambda path, mode, no=name: os.path.basename(path) != no)
        place = "file" if name == "file" else "folder/a/b"
        with pytest.raises(InputError, match=f"^{place} cannot be written: no permission to write {name}$"):
            require_writable(place)


def test_a_folder_that_another_process_makes_meanwhile_is_one(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    real, first = Path.is_dir, iter([False])
    monkeypatch.setattr(Path, "is_dir", lambda folder: next(first, None) is not False and real(folder))
    assert make_folder(tmp_path / "a") == tmp_path / "a"


def test_files_are_for_those_whom_the_umask_allows(tmp_path):
    before = os.umask(0o026)
    try:
        replace_file(tmp_path / "a.txt", "text")
        LineLog(tmp_path / "log").close()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "log")] == [0o640, 0o640]


def test_the_name_of_a_new_log_is_on_disk(tmp_path, monkeypatch):
    synced: list[str] = []
    monkeypatch.setattr(writing, "sync_folder", lambda folder: synced.append(os.fspath(folder)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far").mkdir()
    for path, folder in {"log": os.curdir, "far/log": "far"}.items():
        LineLog(path).close()
        assert synced == [folder]
        LineLog(path).close()
        assert synced.pop() == folder
        assert synced == []


def test_a_log_grows_by_lines_and_cuts_off_what_is_none(tmp_path):
    path = tmp_path / "log"
    for start in (b"one\n", b"one\n" * 100_000):
        for torn in (b"", b"torn", b"x" * 200_000):
            path.write_bytes(start + torn)
            with LineLog(path) as log:
                assert log.torn == torn
                log.append(b"two")
            assert path.read_bytes() == start + b"two\n"
    path.write_bytes(b"no line")
    with LineLog(str(path)) as log:
        assert log.torn == b"no line"
    assert path.read_bytes() == b"no line"  # nothing was appended


@pytest.mark.parametrize("code", FULL)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_line_that_fails_is_not_there_and_can_be_repeated(tmp_path, monkeypatch, call, code):
    path = tmp_path / "log"
    with LineLog(path) as log:
        log.append(b"zero")
        log.append(b"one")
        fail_at(monkeypatch, call, 1, code)
        with pytest.raises(OSError, match=FULL[code]):
            log.append(b"two")
        assert path.read_bytes() == b"zero\none\n"
        log.append(b"two")
    assert path.read_bytes() == b"zero\none\ntwo\n"


def test_a_log_is_mended_when_even_the_cut_failed(tmp_path, monkeypatch):
    path = tmp_path / "log"
    with LineLog(path) as log:
        fail_at(monkeypatch, "write", 1, "ENOSPC")
        fail_at(monkeypatch, "ftruncate", 1, "EIO")
        with pytest.raises(OSError, match="No space"):
            log.append(b"one")
        assert path.read_bytes() == b"on"
        log.append(b"one")
    assert path.read_bytes() == b"one\n"


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(writing.os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    replace_file(tmp_path / "a.txt", "0123456789")
    with LineLog(tmp_path / "log") as log:
        log.append(b"0123456789")
    assert (tmp_path / "a.txt").read_text() == "0123456789"
    assert (tmp_path / "log").read_text() == "0123456789\n"


def test_closing_a_log_never_fails(tmp_path, monkeypatch):
    log = LineLog(tmp_path / "log")
    log.append(b"one")
    fail_at(monkeypatch, "close", 1, "ENOSPC")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"one\n"
