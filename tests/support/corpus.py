"""Bad inputs to every command, in a process of its own whose memory and time are limited.

    python tests/support/corpus.py COUNT SEED

Prints a JSON object: the number of inputs, the seconds, the peak of memory beyond that of the start in MiB,
and what went wrong. The process is ended when one input takes more CPU than its own start, which a slow
machine stretches alike; memory beyond `MEMORY` is refused. With KEEP in the environment, the folders of
inputs that went wrong stay.
"""

from __future__ import annotations

import faulthandler
import functools
import io
import json
import math
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from bad_files import damaged, put_something_else
from official_files import OFFICIAL, lines, picture
from standins import StandIn
from typer.testing import CliRunner

import regaze
from regaze.cli import app, models
from regaze.demo import MODEL_DIR

#: Bytes of memory beyond what is there at the start.
MEMORY = 2 * 2**30
_WAITING = 600  # seconds of one input on the clock, most of which may be others': for what waits forever
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
#: Values of options that nobody would give.
_TEXTS = (
    *("yes", "", " ", "[" * 2_000, "9" * 5_000, "-1", "1e400", "nan", "[[0,1]]", "{}", "a=b", "\x1b[31mx"),
    *("\u202eabc", "x" * 10_000, "²", "0,1,2", "none", "None", "true", "\udcff", "<image>", "-", "9" * 20),
    *("[/]", "[bold]x", "/dev/zero", "/dev/full/x", "http://[::1", "http://x#y", "..", "a\0b", "é" * 200),
)

#: Arguments of a command, in a folder that is the current one.
Command = list[str]


def _official(folder: Path, draw: random.Random) -> Command:
    """Answers to a benchmark in its official layout, one file of which is damaged."""
    official = OFFICIAL[draw.choice(sorted(OFFICIAL))]
    command = official.write(folder)
    name = draw.choice(sorted(official.files))
    if draw.random() < 0.1:
        put_something_else(folder / name, draw)
    else:
        (folder / name).write_bytes(damaged(official.files[name], draw))
    return command


_POPE = OFFICIAL["pope"].files["coco_pope_random.json"]
_ROW = {"benchmark": "pope", "prompt": "Is it?", "label": "yes", "answer": "no"}
_ANSWERS = lines(
    *[{**_ROW, "key": f"random/{n}", "condition": label} for label in ("plain", "vcd") for n in (1, 2)]
)
_TABLE = (
    b"index\tquestion\tanswer\tcategory\tprediction\n0\tIs it?\tyes\trandom\tYes\n1\tIs it?\tno\trandom\tNo\n"
)


_MAPS = (
    {"random": {"1": "Yes", "2": "No"}},
    {"random": [["Yes", "No"], ["No", "No"]], "popular": ["Yes"]},
    [
        {
            "basic": {"question": "Is it?", "predict": "Yes"},
            "hallucination": {"question": "?", "predict": "No"},
        }
    ],
    [{"global_id": 1, "m_pred_a1_image": {"response": "True"}, "m_pred_d1": {"3": {"response": "False"}}}],
)


@functools.cache
def _workbook() -> bytes:
    """The table above as a workbook; some bytes where nothing writes one."""
    try:
        import openpyxl
    except ImportError:
        return b"PK\3\4"
    book, out = openpyxl.Workbook(), io.BytesIO()
    for row in _TABLE.decode().splitlines():
        book.active.append(row.split("\t"))
    book.save(out)
    return out.getvalue()


def _answers(folder: Path, draw: random.Random) -> Command:
    """Answers that bring their questions, compared or not."""
    tables = [("tsv", _TABLE), ("csv", _TABLE.replace(b"\t", b",")), ("xlsx", _workbook())]
    maps = [("json", json.dumps(each).encode()) for each in _MAPS]
    ending, content = draw.choice([("jsonl", _ANSWERS), ("json", _ANSWERS), *tables, *maps])
    (folder / f"answers.{ending}").write_bytes(damaged(content, draw))
    (folder / "plain.jsonl").write_bytes(_ANSWERS.split(b"\n")[0])
    more = draw.choice([[], ["--against", "plain.jsonl"], ["--answer-key", "answer"], ["--json"]])
    return ["score", "pope", f"answers.{ending}", *more]


def _options(folder: Path, draw: random.Random) -> Command:
    config = b"benchmark: pope\nlimit: 1\nmethod: var\nset: {rho: 0.5, moved: 0.1}\nbatch_size: 2\nseed: 1\n"
    methods = lines([{"label": "a", "method": "var", "rho": 0.5}, {"method": "vcd"}])
    if draw.random() < 0.5:
        (folder / "options.yaml").write_bytes(damaged(config, draw))
        return [draw.choice(["evaluate", "compare"]), "--config", "options.yaml", "--output", "out"]
    (folder / "methods.json").write_bytes(damaged(methods, draw))
    return ["compare", "pope", "--limit", "1", "--methods", "methods.json", "--output", "out"]


def _questions(folder: Path, draw: random.Random) -> Command:
    (folder / "a.png").write_bytes(damaged(picture(), draw) if draw.random() < 0.3 else picture())
    (folder / "q.jsonl").write_bytes(damaged(_POPE, draw))
    pages, formats = ["--html", "1", "--max-new-tokens", "1"], ["--export", "vlmevalkit,lmms-eval"]
    command = ["evaluate", "pope", "--questions", "q.jsonl", "--images", ".", "--output", "out"]
    return [*command, *draw.choice([[], pages, formats, ["--json"]])]


def _run_folder(folder: Path, draw: random.Random) -> Command:
    """A run that is continued in a folder one file of which is damaged."""
    command = ["evaluate", "pope", "--limit", "1", "--output", "out"]
    _invoke(command)
    files = sorted(path for path in (folder / "out").rglob("*") if path.is_file())
    path = draw.choice(files)
    if draw.random() < 0.3:
        put_something_else(path, draw)
    else:
        path.write_bytes(damaged(path.read_bytes(), draw))
    return command


def _image(folder: Path, draw: random.Random) -> Command:
    kind = draw.choice(["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm", "ico"])
    size = draw.choice([(64, 64), (64, 64), (3, 7), (1, 30_000)])
    (folder / "picture").write_bytes(damaged(picture(size, kind if size[1] < 256 else "png"), draw))
    if draw.random() < 0.05:
        put_something_else(folder / "picture", draw)
    return draw.choice(
        [
            ["heatmap", "picture", "Is there a dog?", "--output", "out.png", "--max-new-tokens", "1"],
            ["view", "picture", "Is there a dog?", "--output", "out.html", "--max-new-tokens", "1"],
            ["inspect", "demo", "--image", "picture"],
        ]
    )


def _model(folder: Path, draw: random.Random) -> Command:
    """A model's folder with one damaged file."""
    for path in MODEL_DIR.iterdir():
        shutil.copy(path, folder / path.name)
    name = draw.choice(sorted(path.name for path in MODEL_DIR.iterdir()))
    content = (folder / name).read_bytes()
    if draw.random() < 0.1:
        put_something_else(folder / name, draw)
    else:
        (folder / name).write_bytes(damaged(content, draw))
    return draw.choice(
        [
            ["inspect", str(folder), "--prompt", "Is there a dog?"],
            ["heatmap", "chair", "Is there a dog?", "--model", str(folder), "--output", "out.png"],
            ["evaluate", "pope", "--limit", "1", "--model", str(folder), "--output", "out"],
        ]
    )


def _heads(folder: Path, draw: random.Random) -> Command:
    """What `heads` reads before it runs a model that is not there."""
    needles = lines([{"text": "A needle.", "question": "What?", "answer": "A needle.", "cue": "needle"}])
    (folder / "needles.json").write_bytes(damaged(needles, draw))
    (folder / "text.txt").write_bytes(damaged(b"A long text.\n\nOf two paragraphs.\n", draw))
    return ["heads", "./none", "--haystack", "text.txt", "--needles", "needles.json"]


def _arguments(folder: Path, draw: random.Random) -> Command:
    """Options with values that nobody would give."""
    text, other = draw.choice(_TEXTS), draw.choice(_TEXTS)
    (folder / "a.jsonl").write_bytes(_ANSWERS)
    pope = ["evaluate", "pope", "--limit", "1", "--output", "out"]
    drawn = ["--output", "out.png", "--max-new-tokens", "1"]
    return draw.choice(
        [
            [*pope, "--method", "var", "--set", f"rho={text}"],
            [*pope, "--bench", f"splits={text}"],
            [*pope, "--limit", text],
            [*pope, "--generate", f"temperature={text}"],
            [*pope, "--judge", text],
            [*pope, "--output", f"./{text}"],
            ["evaluate", text, "--limit", "1", "--output", "out"],
            ["evaluate", "pope", "--data", text],
            ["compare", "pope", "--limit", "1", "--methods", text, "--output", "out"],
            ["heatmap", text, other, *drawn],
            ["heatmap", "chair", text, "--token", other, *drawn],
            ["heatmap", "chair", "A dog?", "--layers", text, "--heads", other, *drawn],
            ["view", "chair", text, "--output", "out.html", "--max-new-tokens", "1"],
            ["view", "chair", "A dog?", "--output", text],
            ["inspect", "demo", "--prompt", text],
            ["inspect", text],
            ["heads", "demo", "--haystack", text],
            ["score", text, "a.jsonl"],
            ["score", "pope", text],
            ["score", "pope", "a.jsonl", "--answer-key", text],
            ["benchmarks", "get", text],
            ["benchmarks", text],
            [text, other],
        ]
    )


KINDS: tuple[tuple[int, Callable[[Path, random.Random], Command]], ...] = (
    (20, _official),
    (10, _answers),
    (4, _options),
    (6, _questions),
    (1, _run_folder),
    (8, _image),
    (4, _model),
    (4, _heads),
    (10, _arguments),
)


def _invoke(arguments: Sequence[str]) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="regaze")


def problem_of(command: Command) -> str:
    """What is wrong with how a command ended; "" where it is all right."""
    result = _invoke(command)
    if result.exit_code not in (0, 2):
        trace = traceback.format_exception(result.exception) if result.exception else [result.output]
        return "".join(trace)[-1500:]
    errors = [line for line in result.stderr.split("\n") if line.startswith("regaze: error: ")]
    if len(errors) != (result.exit_code == 2):
        return f"exit code {result.exit_code} with {len(errors)} errors: {result.stderr[-500:]!r}"
    if errors and result.stderr.rstrip("\n").split("\n")[-1] != errors[0]:
        return f"lines after the error: {result.stderr[-500:]!r}"
    if found := _UNSEEN.search(result.output + result.stderr):
        return f"{found[0]!r} in the output: {(result.output + result.stderr)[-500:]!r}"
    return ""


def _load_words() -> None:
    """What a process loads once, for its first caption: no input is to blame for the seconds of that."""
    for name in ("amber", "chair, masks"):
        with tempfile.TemporaryDirectory() as folder:
            _invoke(OFFICIAL[name].write(Path(folder)))


def _allow_one_more(seconds: float) -> None:
    """Let the system end the process after so many more."""
    limit = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    faulthandler.dump_traceback_later(_WAITING, exit=True)


def memory(field: str) -> int:
    """Bytes of this process: VmHWM is the peak, VmSize what is mapped."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def run(count: int, seed: int) -> dict[str, Any]:
    """Give `count` inputs to the commands."""
    draw = random.Random(seed)
    weights, kinds = zip(*KINDS, strict=True)
    home, problems, counts = Path.cwd(), [], dict.fromkeys((kind.__name__[1:] for kind in kinds), 0)
    demo, load, stand_in = regaze.wrap(*regaze.load("demo")), models.load_model, StandIn()

    def load_model(name: str, *more: Any, **options: Any) -> Any:
        if name != "demo":
            return load(name, "cpu", None)
        return stand_in if command[0] in ("evaluate", "compare") and "--html" not in command else demo

    models.load_model = load_model
    _load_words()
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + MEMORY,) * 2)
    start, before = time.process_time(), memory("VmHWM")
    for number in range(count):
        (make,) = draw.choices(kinds, weights)
        folder = Path(tempfile.mkdtemp())
        os.environ["REGAZE_CACHE"] = str(folder / "cache")
        os.chdir(folder)
        _allow_one_more(start)
        command: Command = ["evaluate"]  # what `make` may run
        command = make(folder, draw)
        problem, kind = problem_of(command), make.__name__[1:]
        counts[kind] += 1
        os.chdir(home)
        if problem:
            problems.append({"number": number, "kind": kind, "command": command, "problem": problem})
        if problem and "KEEP" in os.environ:
            problems[-1]["folder"] = str(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    faulthandler.cancel_dump_traceback_later()
    return {
        "inputs": count,
        "kinds": counts,
        "seconds": round(time.process_time() - start, 1),
        "mib": (memory("VmHWM") - before) // 2**20,
        "problems": problems,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
