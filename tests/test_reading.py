"""Whatever lies in a file, readers end soon, with a value or with one line that names the file."""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_files import bad_files

import regaze
from regaze.cli import config
from regaze.cli.head_search import read_needles
from regaze.cli.methods import read_methods
from regaze.errors import InputError, RegazeError
from regaze.eval import files
from regaze.eval.answer_fields import choose_answer_field
from regaze.eval.answer_files import read_answer_rows
from regaze.eval.benchmarks.amber.similarity import read_similarity
from regaze.eval.benchmarks.chair.plain_pickle import load_plain
from regaze.eval.benchmarks.chair.words import read_synonyms
from regaze.eval.benchmarks.common.judged import JudgePrompt
from regaze.eval.benchmarks.llava_bench import official_prompts
from regaze.eval.benchmarks.pope.benchmark import read_questions
from regaze.eval.judges.verdicts import RecordedJudge, Verdicts
from regaze.eval.run import journal, results
from regaze.interventions.adhh.method import ADHH
from regaze.interventions.fitting.directions import Directions
from regaze.interventions.moa.method import read_plan
from regaze.interventions.retrieval_heads.haystack import read_haystack
from regaze.interventions.retrieval_heads.head_scores import RetrievalHeads
from regaze.interventions.retrieval_heads.trial_log import TrialLog
from regaze.reading import byte_limit, parse_json, parse_yaml, read_bytes, read_text, seconds_limit
from regaze.toolkit.analysis.boxes import read_boxes
from regaze.toolkit.prompts.images import open_image
from regaze.toolkit.record.record import Record


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    return path


# Files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["text", "\ufefftext"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_text_is_read_plain_or_packed(tmp_path, content, pack):
    assert read_text(put(tmp_path, "a", pack(content.encode()))) == "text"


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in [
        (tmp_path / "pipe", "it is a pipe; copy the data into a file"),
        (Path("/dev/zero"), "it is a device"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
        (Path("a\0b"), "(open: )?embedded null"),
    ]:
        with pytest.raises(InputError, match=f"^questions .*cannot be read: {reason}"):
            read_bytes(path, "questions ")


def test_bytes_are_limited_before_and_after_unpacking(tmp_path, monkeypatch):
    bomb = put(tmp_path, "bomb.gz", gzip.compress(b"0" * 2**20))
    with pytest.raises(InputError, match=r"bomb\.gz has more than 1000 bytes; set REGAZE_MAX_BYTES"):
        read_bytes(bomb, max_bytes=1000)
    monkeypatch.setenv("REGAZE_MAX_BYTES", "10")
    with pytest.raises(InputError, match="has more than 10 bytes"):
        read_text(put(tmp_path, "a", "12345678901"))
    assert read_text(put(tmp_path, "a", "1234567890")) == "1234567890"
    monkeypatch.setenv("REGAZE_MAX_BYTES", "many")
    with pytest.raises(InputError, match="REGAZE_MAX_BYTES=many: expected a number above 0"):
        read_text(tmp_path / "a")


def test_seconds_are_limited(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_MAX_SECONDS", "1e-9")
    with pytest.raises(InputError, match="a took more than 1e-09 seconds"):
        read_text(put(tmp_path, "a", "text"))


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"text")[:-5], b"\x1f\x8b\x08nonsense", b"\x1f\x8b"],
    ids=["torn", "nonsense", "magic alone"],
)
def test_damaged_gzip_files_are_named(tmp_path, content):
    with pytest.raises(InputError, match=r"a\.gz cannot be read: damaged gzip file"):
        read_text(put(tmp_path, "a.gz", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\xff", ":2: not UTF-8 text$"),
        ("\ufeffa".encode("utf-16-le"), ":1: not UTF-8 text, perhaps UTF-16; save it as UTF-8"),
        (b"a\n\nb\0", r":3: a NUL character \(U\+0000\) in the text"),
        (b"\x1b[2J", r":1: the control character U\+001B in the text"),
        (b"a\n\xed\xa0\x80", ":2: not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_text(put(tmp_path, "a", content))


def test_a_packed_file_without_content_ends_in_time(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_MAX_SECONDS", "0.01")
    with pytest.raises(InputError, match=r"a\.gz took more than 0\.01 seconds"):
        read_text(put(tmp_path, "a.gz", gzip.compress(b"") * 200_000))
    monkeypatch.setenv("REGAZE_MAX_BYTES", "100")
    with pytest.raises(InputError, match=r"a\.gz has more than 100 bytes"):
        read_text(put(tmp_path, "a.gz", gzip.compress(b"") * 6))


def test_limits_grow_with_the_bytes_that_may_be_read(monkeypatch):
    assert byte_limit() == 64 * 2**20
    assert byte_limit(2**30) == 2**30
    assert seconds_limit(byte_limit(2**30)) == 160
    monkeypatch.setenv("REGAZE_MAX_BYTES", "1000")
    assert byte_limit() == 1000
    assert byte_limit(2**30) == 2**30  # a limit of another kind of file
    monkeypatch.setenv("REGAZE_MAX_BYTES", str(2**31))
    assert byte_limit(2**30) == 2**31
    monkeypatch.setenv("REGAZE_MAX_SECONDS", "3")
    assert seconds_limit(byte_limit(2**30)) == 3


def test_lines_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("regaze.reading.MAX_LINES", 2)
    assert read_text(put(tmp_path, "a", "1\n2\n")) == "1\n2\n"
    with pytest.raises(InputError, match="a has more than 2 lines"):
        read_text(put(tmp_path, "a", "1\n2\n3\n"))


# JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":\n}', r"f:2: not valid JSON \(Expecting value, column 1\)"),
        ("[" * 101 + "]" * 101, "nested deeper than 100 levels"),
        ('[{"a": ' * 60 + "1" + "}]" * 60, "nested deeper than 100 levels"),
        ("[" * 100_000, "f:1: nested deeper than 100 levels"),
        ("[1,\n" + "9" * 101 + "]", "f:2: an integer of more than 100 digits"),
        ("[1,\n" + "9" * 5000 + "]", "f:2: an integer of more than 100 digits"),
        ('["a",\n"\\ud800"]', r"f:2: half a surrogate pair \(U\+D800\) in a text"),
        ('[\n{"a": 1, "b": 2, "a": 3}]', "f:1: 'a' occurs twice in one object"),
        ('{"a\\u0000": 1}', r"f:1: a NUL character \(U\+0000\) in a text"),
        ('["\\b"]', r"the control character U\+0008 in a text"),
    ],
)
def test_json_has_limits(text, message):
    with pytest.raises(InputError, match=message):
        parse_json(text, "f")


def test_json_within_the_limits_is_read_as_ever():
    deep = "[" * 100 + "]" * 100
    for text in (deep, "9" * 100, '"\\ud83d\\ude42\\n\\\\b\\\\u0000"', '"' + "7" * 500 + '"', "1e999"):
        assert parse_json(text, "f") == json.loads(text)


def test_escaped_control_characters_are_read_where_models_wrote():
    assert parse_json('["\\u001b\\b\\u0000"]', "f", controls=True) == ["\x1b\b\0"]
    with pytest.raises(InputError, match=r"f:1: half a surrogate pair \(U\+D800\) in a text"):
        parse_json('["\\u001b\\ud800"]', "f", controls=True)


def test_the_number_of_values_is_limited():
    with pytest.raises(InputError, match="f has too many values to be read"):
        parse_json("[" + "[]," * 30_000 + "1]", "f", max_bytes=2**20)


# YAML ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "f:2: not valid YAML"),
        ("a: 2001-99-99", r"f: not valid YAML \(month must be in 1..12.*\)"),
        ("a: !!python/object:os.system {}", "f:1: not valid YAML .could not determine a constructor"),
        ("a: &a [*a]", "nested deeper than 100 levels"),
        ("[" * 200 + "]" * 200, "f:1: nested deeper than 100 levels"),
        ("a: 1\nb: {c: 1, c: 2}", r"f:2: not valid YAML \('c' occurs twice\)"),
        ("a: &a [1]\nb: [" + "*a, " * 11 + "]", "f:2: more than 10 aliases"),
        ("a: 0x" + "f" * 500, "f: an integer of more than 100 digits"),
        ('a: "\\0"', r"f: a NUL character \(U\+0000\) in a text"),
        ("a: \x1b", r"f:1: the control character U\+001B"),
        ("a" * 300_000, "f is longer than 262144 bytes"),
    ],
)
def test_yaml_has_limits(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_yaml(text, "f")
    assert "\n" not in str(caught.value)


def test_yaml_within_the_limits_is_read_as_ever():
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: {d: 1.5, e: yes}", "f") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"d": 1.5, "e": True},
    }
    assert parse_yaml('[{"method": "vcd"}]', "f") == [{"method": "vcd"}]


# Tables -------------------------------------------------------------------------------------------------


def test_tables_have_limits(tmp_path, monkeypatch):
    long = put(tmp_path, "a.csv", 'a,b\n"' + "x" * 200_000 + '",1\n')
    with pytest.raises(InputError, match=r"a\.csv:2: field larger than field limit"):
        files.read_table(long, ("a",))
    with pytest.raises(InputError, match=r"a\.csv:1: more than 1000 columns"):
        files.read_table(put(tmp_path, "a.csv", "a" + ",a" * 1000 + "\n"), ("a",))
    with pytest.raises(InputError, match=r"a\.csv:1: the column 'a' occurs twice"):
        files.read_table(put(tmp_path, "a.csv", "a,b,A\n1,2,3\n"), ("a",))
    monkeypatch.setattr(files, "MAX_ROWS", 2)
    with pytest.raises(InputError, match=r"a\.csv has more than 2 rows"):
        files.read_table(put(tmp_path, "a.csv", "a\n1\n2\n"), ("a",))


def test_head_files_of_no_model_take_no_memory(tmp_path):
    content = (
        '{"format": "regaze retrieval heads", "version": 1, "layers": 1000000000, "heads": 9, "trials": []}'
    )
    with pytest.raises(InputError, match="is no head file"):
        RetrievalHeads.load(put(tmp_path, "heads.json", content))


# One place ----------------------------------------------------------------------------------------------

PACKAGE = Path(regaze.__file__).parent
#: Calls that read a file, or that parse what may have come from one.
DIRECT = re.compile(
    r"(.*\.|^)(open|fdopen)|.*\.(read_text|read_bytes|imread)|(json|yaml)\.\w*load\w*|yaml\.parse|csv\.\w+|gzip\.\w+"
    r"|(zipfile|tarfile|pickle|dill|joblib|pd|pandas|shelve|marshal)\.\w+|(np|numpy|torch)\.(load\w*|fromfile|genfromtxt)"
    r"|safe_open|load_file|Unpickler"
)
#: Where they may stand, by module: the reader itself, files of this package or of a run of its own, and texts
#: that are bounded otherwise.
ALLOWED = {
    "reading": "the reader",
    "eval/files": "csv of a text that the reader has read; files that are written",
    "toolkit/prompts/images": "the reader of pictures, on a file of the reader",
    "toolkit/record/storage": "records, checked by a schema",
    "interventions/fitting/direction_files": "directions, checked by a schema",
    "interventions/fitting/parts": "parts of a fit, in a folder of its own, by their headers",
    "interventions/fitting/base": "texts made from objects",
    "serving/frontend/checkpoints": "weights of this package",
    "serving/common/wire": "texts made from objects that the reader or a server has read",
    "toolkit/model/weights_hash": "texts made from objects",
    "kernels/triton/tuning": "a file of this package, or one that it has just written",
    "bed/scenes": "files of this package",
    "bed/assembly": "weights of this package, or of a training of its own, as safetensors",
    "bed/base": "a download, against its hash",
    "demo/shipped": "files of this package",
    "display": "makes a table of pandas",
    "eval/workbooks": "an archive that the reader has read, member by member within its limit",
    "eval/benchmarks/common/embedded": "the header of a picture that was a text of limited length",
    "eval/benchmarks/beaf/demo": "pictures of this package",
    "eval/benchmarks/object_halbench/objects": "a judge's reply, whose size is limited",
    "eval/benchmarks/r_bench/drawing": "a picture, on a file of the reader",
    "toolkit/prompts/video": "a video, on a file of the reader",
    "eval/benchmarks/ruler": "words of the package wonderwords",
    "eval/report/report": "a plot that it has just drawn",
    "cli/app": "/dev/null, to write to",
    "cli/start": "/dev/null, for a closed stream",
    "eval/run/journal": "the journals of a run, with checksums",
    "eval/run/metering": "/proc/self/status",
    "eval/run/fingerprint": "texts made from objects",
    "eval/judges/verdicts": "a line that the reader has read",
    "eval/judges/http": "a response, whose size is limited",
    "arguments": "arguments of the command line",
    "interventions/retrieval_heads/trial_log": "lines that the reader has read",
    "toolkit/record/recorder": "a text made from an object",
    "toolkit/viewer/codec": "packs",
    "writing": "writes",
}


def direct_readers() -> Iterator[str]:
    """Modules that read without the reader."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and DIRECT.fullmatch(ast.unparse(node.func)):
                modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                if not {"a", "ab", "w"} & set(modes):  # writes
                    yield path.relative_to(PACKAGE).with_suffix("").as_posix()


def test_files_are_read_in_one_place():
    found = {name for name in direct_readers() if not name.startswith(("demo/training", "bed/training"))}
    assert found == set(ALLOWED), "read files by regaze.reading or regaze.eval.files, which keep the limits"


# A corpus -----------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], Any]] = {
    "a.txt": read_haystack,
    "a.json": files.read_json,
    "b.jsonl": files.read_records,
    "c.csv": lambda path: files.read_table(path, ("a",)),
    "d.tsv": lambda path: choose_answer_field(read_answer_rows(path)),
    "e.json": lambda path: choose_answer_field(read_answer_rows(path)),
    "f.jsonl": lambda path: choose_answer_field(read_answer_rows(path)),
    "g.jsonl": lambda path: read_questions(path, path.parent, "all"),
    "h.jsonl": RecordedJudge,
    "i.jsonl": Verdicts,
    "j.json": RetrievalHeads.load,
    "k.json": ADHH.from_file,
    "l.json": read_plan,
    "m.json": read_needles,
    "n.yaml": lambda path: config.read_defaults(path, ["benchmark", "limit", "set", "methods"]),
    "o.yaml": lambda path: read_methods(str(path)),
    "p.json": read_boxes,
    "q.pkl": lambda path: load_plain(path.read_bytes(), str(path), [("__main__", "CHAIR")]),
    "r.txt": read_synonyms,
    "s.json": read_similarity,
    "t.png": open_image,
    "u.safetensors": Record.load,
    "v.jsonl": TrialLog,
    "v.safetensors": Directions.load,
    "w.tsv": lambda path: files.read_tab_separated(path, (3, 4)),
    "x.json": official_prompts,
    "y.txt": lambda path: JudgePrompt.from_file(path, ("question",)),
    "journal.0.jsonl": lambda path: list(journal.read_batches(path.parent)),
    "results.json": lambda path: results.read(path.parent),
}


def check_corpus(folder: Path, count: int, seed: int) -> None:
    """Every reader gives a value or one of our errors, in one line and in time."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in bad_files(count, seed):
        for name, read in READERS.items():
            path = put(folder, name, content)
            start = time.monotonic()
            problem = None
            try:
                read(path)
            except RegazeError as error:
                problem = str(error)
            except Exception as error:
                raise AssertionError(f"{name}: {content[:300]!r}") from error
            assert problem is None or len(problem.splitlines()) == 1, (name, content[:300])
            assert time.monotonic() - start < 10, (name, content[:200])
            path.unlink()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_bad_files_give_one_line(tmp_path):
    check_corpus(tmp_path, 90, seed=0)


@pytest.mark.exhaustive
def test_two_thousand_bad_files_give_one_line(tmp_path):
    check_corpus(tmp_path, 2_000, seed=1)
