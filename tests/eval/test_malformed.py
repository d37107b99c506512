"""Every malformed input is named in one line on standard error, with exit code 2."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from standins import StandIn
from typer.testing import CliRunner, Result

from regaze.cli import app, models

QUESTION = {"image": "a.png", "text": "Is there a dog?", "label": "yes"}
GOOD = json.dumps(QUESTION)


def changed(**change: Any) -> str:
    return json.dumps({**QUESTION, **change})


#: files that the cases name
FILES: dict[str, str | bytes] = {
    "q.jsonl": f"{GOOD}\n{changed(label='no', text='Is there a cat?')}",
    "empty.jsonl": "\n",
    "bad.jsonl": f"{GOOD}\n{{oops\n",
    "binary.jsonl": b"\xff\xfe\x00",
    "list.jsonl": f"{GOOD}\n[1]",
    "nolabel.jsonl": '{"image": "a.png", "text": "?"}',
    "maybe.jsonl": changed(label="maybe"),
    "blank.jsonl": changed(text=" "),
    "number.jsonl": changed(image=7),
    "token.jsonl": changed(text="a <image>?"),
    "lost.jsonl": changed(image="lost.png"),
    "torn.jsonl": changed(image="torn.png"),
    "text.jsonl": changed(image="text.png"),
    "text.png": "no image at all",
    "config.yaml": "benchmark: pope\nbogus: 1\n",
    "list.yaml": "- pope\n",
    "broken.yaml": "a: [1\n",
    "binary.yaml": b"\xff\xfe\x00",
    "flat.yaml": "benchmark: pope\nset: rho\n",
    "wrong.yaml": "benchmark: pope\nlimit: many\n",
    "methods.json": '{"method": "vcd"}',
    "methods.yaml": "a: [1\n",
    "twice.json": '[{"method": "vcd"}, {"method": "vcd"}]',
    "unnamed.json": '[{"alpha": 1}]',
    "answers.jsonl": '{"answer": "yes"}\n{"answer": "no"}\n{"answer": "no"}',
    "unlabelled.jsonl": '{"answer": "yes"}',
    "noanswer.jsonl": '{"answer": "yes", "label": "yes"}\n{"label": "yes"}',
    "answer7.jsonl": '{"answer": 7, "label": "yes"}',
    "failed.jsonl": '{"key": "q/1", "error": "out of memory", "label": "no"}',
    "keys.jsonl": '{"key": "q/1", "answer": "no"}\n{"key": "q/1", "answer": "no"}',
    "strange.jsonl": '{"key": "q/9", "answer": "no"}',
    "half.jsonl": '{"key": "q/1", "answer": "no"}',
    "other.jsonl": '{"prompt": "Is there a cat?", "answer": "no"}\n{"prompt": "Why?", "answer": "no"}',
    "mixed.jsonl": json.dumps({"key": "q/1", "prompt": "Is there a cat?", "answer": "no"})
    + '\n{"key": "q/2", "prompt": "Is there a cat?", "answer": "no"}',
    "asked.jsonl": f"{GOOD}\n{GOOD}",
    "two.jsonl": '{"prompt": "Why?", "answer": "no", "response": "No."}',
    "turned.jsonl": '{"target": "no", "answer": "no"}\n{"target": "no", "answer": "no"}',
    "three.jsonl": "\n".join(
        json.dumps({"key": "q/1", "condition": c, "answer": "no", "label": "no"}) for c in ("a", "b")
    ),
    "table.tsv": "index\tquestion\tprediction\n0\twhy?\n",
    "noprediction.tsv": "index\tquestion\n0\twhy?\n",
    "predictions.pkl": b"PK",
    "deep.jsonl": "[" * 5_000,
    "digits.jsonl": '{"answer": ' + "9" * 5_000 + "}",
    "surrogate.jsonl": '{"answer": "yes\\ud83d", "label": "yes"}',
    "nul.jsonl": changed(image="a\0.png"),
    "torn.jsonl.gz": gzip.compress(GOOD.encode())[:-9],
    "wide.csv": 'index,prediction\n0,"' + "x" * 200_000 + '"\n',
    "date.yaml": "benchmark: pope\nlimit: 2001-99-99\n",
    "tag.yaml": "benchmark: !!python/name:os.system\n",
    "loop.yaml": "benchmark: &a [*a]\n",
    "laughs.yaml": "a: &a [1]\nb: [" + "*a, " * 30 + "]\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All the files, and a picture that is one."""
    folder = tmp_path_factory.mktemp("malformed")
    for name, content in FILES.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "folder").mkdir()
    return folder


def regaze(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), prog_name="regaze")


def pope(questions: str, *more: str) -> list[str]:
    return ["evaluate", "pope", "--questions", questions, "--images", ".", "--output", "out", *more]


def score(answers: str, *more: str) -> list[str]:
    return ["score", "pope", answers, *more]


JOINED = ("--questions", "q.jsonl", "--images", ".")
HTTP = "http://localhost:1/v1"

CASES: list[tuple[list[str], str]] = [
    # What to run
    (["evaluate", "chairs"], "unknown benchmark 'chairs'; did you mean 'chair'?"),
    (["evaluate", "pope,pope", "--limit", "1"], "each benchmark once, got pope, pope"),
    (["evaluate", "pope", "--split", "rare"], "POPE split 'rare'"),
    (["evaluate", "captions", "--split", "random"], "captions has no option 'splits' here"),
    (["evaluate", "captions", "--questions", "q.jsonl", "--images", "."], "--questions is for pope"),
    (
        ["evaluate", "pope", "--data", "hub", "--images", "."],
        "--images .: pope from hub brings its own images",
    ),
    (
        ["evaluate", "popev2", "--data", "demo"],
        "popev2 has no questions about the scenes of the demo: give --data",
    ),
    (["evaluate", "amber", "--data", "hub"], "amber is not read from the hub: give --data a folder"),
    (
        ["evaluate", "popev2"],
        "popev2: no questions; run `regaze benchmarks get popev2`, or say where they are",
    ),
    (["evaluate", "pope", "--data", "folder", "--images", "."], "folder has no coco_pope_random.json"),
    (["evaluate", "pope", "--data", "nowhere", "--images", "."], "nowhere has no coco_pope_random.json"),
    (["evaluate", "pope", "--bench", "suffix"], "--bench suffix: expected NAME=VALUE"),
    (
        ["evaluate", "pope", "--bench", "colour=red"],
        "pope has no option 'colour' here; there are limit, splits",
    ),
    (
        ["evaluate", "captions", "--bench", "max_new_tokens=many"],
        "captions, option max_new_tokens=many: expected int",
    ),
    (["evaluate", "pope", "--limit", "0"], "limit 0: expected at least 1"),
    (
        ["evaluate", "hallusionbench", "--data", "folder", "--bench", "correctness=x"],
        "option correctness=x: expected ",
    ),
    # Questions of one's own
    (["evaluate", "pope", "--questions", "q.jsonl"], "--questions FILE and --images DIR belong together"),
    (["evaluate", "pope", "--images", "."], "--questions FILE and --images DIR belong together"),
    (pope("q.jsonl", "--split", "random"), "--split chooses among the shipped questions"),
    (
        pope("q.jsonl", "--bench", "version=head"),
        "--bench version: questions from a file have suffix and limit",
    ),
    (pope("none.jsonl"), "questions file none.jsonl cannot be read: No such file"),
    (pope("empty.jsonl"), "questions file empty.jsonl holds no questions"),
    (pope("bad.jsonl"), "bad.jsonl:2: not valid JSON"),
    (pope("binary.jsonl"), "binary.jsonl:1: not UTF-8 text, perhaps UTF-16"),
    (pope("list.jsonl"), "list.jsonl:2: expected an object"),
    (pope("nolabel.jsonl"), "nolabel.jsonl:1: 'label' must be a non-empty string, got None"),
    (pope("maybe.jsonl"), "maybe.jsonl:1: label must be yes or no, got 'maybe'"),
    (pope("blank.jsonl"), "blank.jsonl:1: 'text' must be a non-empty string"),
    (pope("number.jsonl"), "number.jsonl:1: 'image' must be a non-empty string, got 7"),
    (pope("token.jsonl"), "token.jsonl:1: <image> cannot be part of a question"),
    (pope("q.jsonl", "--suffix", " <image>"), "suffix ' <image>': <image> cannot be part of a question"),
    (pope("lost.jsonl"), "no question is left to score, every one failed"),
    (
        pope("lost.jsonl", "--max-errors", "0"),
        "image lost.png cannot be read: No such file or directory (asked ",
    ),
    ([*pope("q.jsonl")[:-3], "nowhere"], "image folder nowhere does not exist"),
    # How to run it
    (pope("q.jsonl", "--output", "a.png"), "output folder a.png cannot be used: File exists"),
    (pope("q.jsonl", "--output", "/proc"), "output folder /proc cannot be used"),
    (pope("q.jsonl", "--batch-size", "0"), "batch size 0: expected at least 1"),
    (pope("q.jsonl", "--max-errors", "-1"), "max errors -1: expected 0 or more"),
    (pope("q.jsonl", "--set", "rho=0.5"), "--set rho=0.5: there is no method to set it on"),
    (pope("q.jsonl", "--method", "vra"), "unknown method 'vra'; did you mean"),
    (
        pope("q.jsonl", "--method", "var", "--set", "roh=1"),
        "--set roh=1: no parameter 'roh'; did you mean 'rho'? There are rho, moved",
    ),
    (pope("q.jsonl", "--method", "var", "--set", "rho=much"), "--set rho=much: expected float"),
    (pope("q.jsonl", "--method", "var", "--set", "moved=3"), "moved=3: expected float in [0, 1]"),
    (pope("q.jsonl", "--method", "knockout"), "--method knockout: no heads to remove; add --set heads="),
    (
        pope("q.jsonl", "--generate", "warmth=1"),
        "--generate warmth=1: no parameter 'warmth'; there are do_sa",
    ),
    (pope("q.jsonl", "--generate", "max_new_tokens=1"), "--generate max_new_tokens: give --max-new-tokens"),
    (pope("q.jsonl", "--generate", "temperature"), "--generate temperature: expected NAME=VALUE"),
    (pope("q.jsonl", "--generate", "temperature=-1"), "--generate temperature=-1: expected float >= 0"),
    (pope("q.jsonl", "--generate", "temperature=1e999"), "--generate temperature=1e999: expected float >= 0"),
    (pope("q.jsonl", "--generate", "num_beams=0"), "--generate num_beams=0: expected int in [1, 1024]"),
    (pope("q.jsonl", "--generate", "num_beams=2.5"), "--generate num_beams=2.5: expected int in [1, 1024]"),
    (pope("q.jsonl", "--generate", "top_p=0"), "--generate top_p=0: expected float in (0, 1]"),
    (pope("q.jsonl", "--generate", "do_sample=maybe"), "--generate do_sample=maybe: expected bool"),
    (pope("q.jsonl", "--generate", "early_stopping=true"), "--generate early_stopping=True: it needs beams"),
    (pope("q.jsonl", "--generate", "min_new_tokens=17"), "min_new_tokens=17: --max-new-tokens allows 16"),
    (
        pope("q.jsonl", "--generate", "num_beams=2", "--generate", "temperature=1"),
        "--generate num_beams=2: beams are not sampled",
    ),
    (pope("q.jsonl", "--export", "csv"), "unknown format 'csv'; there are lmms-eval, vlmevalkit"),
    (
        ["evaluate", "pope", "--resume", "--model", "never/run"],
        "--resume: there is no run out/pope-none-run-",
    ),
    # Files of options
    (["evaluate", "--config", "none.yaml"], "--config none.yaml cannot be read: No such file"),
    (
        ["evaluate", "--config", "config.yaml"],
        "--config config.yaml: no option 'bogus'; there are allow_urls, batch_size",
    ),
    (["evaluate", "--config", "list.yaml"], "--config list.yaml: expected options such as `benchmark: pope`"),
    (["evaluate", "--config", "broken.yaml"], "--config broken.yaml:2: not valid YAML ("),
    (["evaluate", "--config", "binary.yaml"], "--config binary.yaml:1: not UTF-8 text"),
    (["evaluate", "--config", "flat.yaml"], "--config flat.yaml: set must be a mapping of names to values"),
    (["evaluate", "--config", "wrong.yaml"], "Invalid value for '--limit'"),
    # Comparing
    (["compare", "pope", "--methods", "vcd,vcd"], "--methods: 'vcd' twice; give each its own label"),
    (["compare", "pope", "--methods", ","], "--methods: no method was given"),
    (["compare", "pope", "--methods", ""], "--methods: no method was given"),
    (["compare", "pope", "--methods", "none.json"], "--methods none.json cannot be read: No such file"),
    (["compare", "pope", "--methods", "methods.json"], "methods.json: expected a list of {label, method"),
    (["compare", "pope", "--methods", "methods.yaml"], "--methods methods.yaml:2: not valid YAML ("),
    (["compare", "pope", "--methods", "twice.json"], "'vcd' twice"),
    (["compare", "pope", "--methods", "unnamed.json"], 'expected {"method": name, parameter: value, ...}'),
    (
        ["compare", "pope", "--limit", "1", "--methods", '[{"label": "plain", "method": "vcd"}]'],
        "'plain' is the",
    ),
    # Judges
    (
        ["evaluate", "pope", "--limit", "1", "--judge", HTTP],
        f"--judge {HTTP}: add the model's name on that server",
    ),
    (["evaluate", "pope", "--judge", "none.jsonl"], "verdicts none.jsonl cannot be read"),
    # Scoring
    (score("none.jsonl"), "answers file none.jsonl cannot be read: No such file"),
    (score("empty.jsonl"), "empty.jsonl holds no answers"),
    (score("bad.jsonl"), "bad.jsonl:2: not valid JSON"),
    (score("list.jsonl"), "list.jsonl:2: expected an object, got list"),
    (score("noanswer.jsonl"), "noanswer.jsonl:2: no answer, which stands under one of filtered_resps"),
    (score("answer7.jsonl"), "answer7.jsonl:1: 'answer' must be a text, got 7"),
    (score("failed.jsonl"), "failed.jsonl:1: this question failed (out of memory)"),
    (score("unlabelled.jsonl"), "1 answers for 1902 questions of pope; --split and --limit leave"),
    (score("answers.jsonl", *JOINED), "3 answers for 2 questions of pope"),
    (score("keys.jsonl", *JOINED), "keys.jsonl:2: a second answer to 'q/1' (key), after keys.jsonl:1"),
    (score("strange.jsonl", *JOINED), "strange.jsonl:1: pope has no question 'q/9'"),
    (score("half.jsonl", *JOINED), "1 of 2 questions have no answer, the first is 'q/2' of q.jsonl:2"),
    (
        score("other.jsonl", *JOINED),
        "other.jsonl:2: pope has no question 'why?' (text)",
    ),
    (
        score("mixed.jsonl", *JOINED),
        "mixed.jsonl:1 answers 'Is there a cat?', but q/1 asks 'Is there a dog?'",
    ),
    (score("asked.jsonl"), "asked.jsonl holds questions (under 'text') and no answers; --answer-key names"),
    (score("two.jsonl"), "two.jsonl: the answers could stand under 'answer' or 'response'; choose by --ans"),
    (score("turned.jsonl", *JOINED), "turned.jsonl:1: its right answer is 'no', that of q/1 'yes'"),
    (score("three.jsonl"), "three.jsonl: answers of a, b without those of the plain model"),
    (
        score("half.jsonl", "--against", "three.jsonl"),
        "three.jsonl holds answers of a, b; --against compares",
    ),
    (score("table.tsv"), "table.tsv:2: 2 fields, expected 3"),
    (score("noprediction.tsv"), "noprediction.tsv:2: no answer, which stands under one of"),
    (score("predictions.pkl"), "predictions.pkl is a pickle, which may run programs; give the .xlsx"),
    # Files that are none, damaged or hostile
    (score("deep.jsonl"), "deep.jsonl:1: nested deeper than 100 levels"),
    (score("digits.jsonl"), "digits.jsonl:1: an integer of more than 100 digits"),
    (score("surrogate.jsonl"), "surrogate.jsonl:1: half a surrogate pair (U+D83D) in a text"),
    (pope("nul.jsonl"), "nul.jsonl:1: a NUL character (U+0000) in a text"),
    (pope("torn.jsonl.gz"), "torn.jsonl.gz cannot be read: damaged gzip file"),
    (score("wide.csv"), "wide.csv:2: field larger than field limit"),
    (score("/dev/zero"), "answers file /dev/zero cannot be read: it is a device"),
    (score("folder"), "answers file folder cannot be read: Is a directory"),
    (["evaluate", "--config", "date.yaml"], "--config date.yaml: not valid YAML (month must be in 1..12"),
    (["evaluate", "--config", "tag.yaml"], "--config tag.yaml:1: not valid YAML (could not determine"),
    (["evaluate", "--config", "loop.yaml"], "--config loop.yaml: nested deeper than 100 levels"),
    (["evaluate", "--config", "laughs.yaml"], "--config laughs.yaml:2: more than 10 aliases"),
    # Benchmarks and pictures
    (["benchmarks", "fetch", "pope"], "unknown action 'fetch'; there is `regaze benchmarks get NAME`"),
    (["benchmarks", "get"], "get what? There are pope"),
    (["benchmarks", "get", "chess"], "unknown benchmark 'chess'"),
    (["heatmap", "none.png", "What?"], "image none.png does not exist"),
    (["heatmap", "a.png", "What?", "--output", "x.bmp"], "x.bmp: expected a name that ends in .png"),
    (
        ["heatmap", "a.png", "What?", "--output", "a.png/x.png"],
        "a.png/x.png cannot be written: a.png is no folder",
    ),
    (["heatmap", "a" * 300, "What?"], "and no shipped scene has that name"),
]


def test_there_are_enough_of_them():
    assert len(CASES) >= 60


def named(value: Any) -> str:
    return " ".join(value)[:60] if isinstance(value, list) else ""


@pytest.mark.parametrize(("arguments", "message"), CASES, ids=named)
def test_bad_input_is_one_line_on_standard_error_and_exit_code_2(folder, monkeypatch, arguments, message):
    gaze = StandIn()
    monkeypatch.setattr(models, "load_model", lambda *given, **more: gaze)
    monkeypatch.setenv("REGAZE_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    result = regaze(*arguments)
    assert message in result.stderr
    assert result.exit_code == 2
    assert result.stdout == ""
    complaints = [line for line in result.stderr.splitlines() if line.startswith("regaze: error: ")]
    assert complaints == [result.stderr.splitlines()[-1]]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [pope("bad.jsonl"), score("answer7.jsonl"), ["benchmarks", "get", "chess"]],
    ids=lambda a: a[0],
)
def test_debug_shows_where_it_came_from(folder, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    again = regaze(*arguments, "--debug")
    assert again.exception is not None
    assert type(again.exception).__name__ == "InputError"


@pytest.mark.parametrize(
    ("arguments", "message", "command"),
    [
        (["--bogus"], "No such option", "regaze"),
        (["evalute"], "No such command 'evalute'", "regaze"),
        (["evaluate"], "Missing argument 'benchmark'", "regaze evaluate"),
        (["evaluate", "pope", "--bogus"], "No such option", "regaze evaluate"),
        (["evaluate", "pope", "--limit", "abc"], "Invalid value for '--limit'", "regaze evaluate"),
        (["evaluate", "pope", "--seed", "-1"], "Invalid value for '--seed'", "regaze evaluate"),
        (["heatmap", "a.png", "?", "--seed", str(2**32)], "Invalid value for '--seed'", "regaze heatmap"),
        (["inspect", "demo", "more"], "unexpected extra argument", "regaze inspect"),
        (["score", "pope"], "Missing argument 'answers'", "regaze score"),
    ],
)
def test_misuse_is_one_line_that_points_to_the_help(arguments, message, command):
    result = regaze(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("regaze: error: ")
    assert result.stderr.count("\n") == 1
    # The case of an argument's name depends on typer's version.
    assert message.lower() in result.stderr.lower()
    assert result.stderr.endswith(f" (see `{command} --help`)\n")


def test_a_broken_picture_among_good_ones_is_counted_and_named(folder, monkeypatch, tmp_path):
    """Only the question about it is lost; the model's own loader finds out."""
    from regaze.toolkit.prompts.images import open_image

    class Looks(StandIn):
        def ask(self, images, questions, **kwargs):
            for entry in images:
                [open_image(image) for image in entry]
            return super().ask(images, questions, **kwargs)

    monkeypatch.setattr(models, "load_model", lambda *given, **more: Looks())
    monkeypatch.chdir(folder)
    questions = [
        changed(image=name, text=f"{name}?") for name in ("a.png", "torn.png", "text.png", "lost.png")
    ]
    (tmp_path / "mixed.jsonl").write_text("\n".join(questions))
    out = tmp_path / "out"
    result = regaze(*pope(str(tmp_path / "mixed.jsonl"), "--output", str(out)))
    assert result.exit_code == 0, result.stderr
    assert "plain: 3 questions failed, 3 are not scored" in result.stdout
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert "answer" in rows[0]
    for row, reason in zip(
        rows[1:], ("not a readable image", "not a readable image", "No such file"), strict=True
    ):
        assert reason in row["error"]


def test_a_device_or_dtype_that_is_not_there():
    for arguments, message in [
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--dtype", "int3"], "dtype 'int3': expected float32, bfloat16 or float16"),
    ]:
        result = regaze("heatmap", __file__, "What?", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
