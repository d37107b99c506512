"""Interrupt runs of `regaze evaluate` at random moments, and compare them with an undisturbed one.

    python tests/support/interrupt_runner.py FOLDER INTERRUPTS SEED

The model is loaded once. Every run is a process forked from this one that goes through the command's entry
point, and gets one or two of SIGINT, SIGTERM and SIGHUP. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from fault_runner import answered, check

import regaze
from regaze import cli

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OPTIONS = ("--limit", "12", "--max-new-tokens", "4", "--batch-size", "3", "--export", "lmms-eval,vlmevalkit")
METHOD = ("--method", "knockout", "--set", "heads=[[0,0]]")


def main(folder: Path, interrupts: int, seed: int) -> dict[str, object]:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    gaze = regaze.wrap(*regaze.load("demo"))
    cli.models.load_model = lambda *options, **more: gaze
    for name in ("run", "failure_pages", "tables", "questions", "generation"):
        getattr(cli, name)  # what would be imported

    began = time.perf_counter()
    assert Started(folder, folder / "undisturbed").end() == (0, 1)
    duration = time.perf_counter() - began
    chance = random.Random(seed)
    done, finished, after_each = 0, 0, []
    while done < interrupts or not finished:
        output = folder / f"interrupted-{finished}"
        before = answered(output)
        process = Started(folder, output)
        sent = []
        if done < interrupts:
            time.sleep(chance.uniform(0.0, 0.8 * duration))
            sent.append(process.send(chance.choice(SIGNALS)))
            if chance.random() < 0.5:
                time.sleep(chance.choice((0, 0.0001, 0.001)))
                sent.append(process.send(chance.choice(SIGNALS)))
        code, lines = process.end()
        assert lines == 1, process.errors.read_text()
        assert code in (0, *(128 + number for number in sent)), (code, sent, process.errors.read_text())
        left = [path.name for path in output.rglob("*.partial*")] if output.is_dir() else []
        assert not left, left
        assert before <= answered(output), "answers were lost"
        after_each.append(len(answered(output)))
        done += code != 0
        if code == 0:
            check(folder / "undisturbed", output)
            finished += 1
    return {"interrupts": done, "finished": finished, "answers after each": after_each}


class Started:
    """`regaze evaluate` in a forked process."""

    def __init__(self, folder: Path, output: Path) -> None:
        self.errors = folder / "errors.txt"
        self.process = os.fork()
        if self.process:
            return
        for number, name in ((1, "output.txt"), (2, "errors.txt")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["regaze", "evaluate", "pope", *OPTIONS, *METHOD, "--output", str(output)]
        cli.main()

    def send(self, number: signal.Signals) -> signal.Signals:
        os.kill(self.process, number)  # which is not collected yet, even if it has ended
        return number

    def end(self) -> tuple[int, int]:
        """The exit code and the number of lines on standard error."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        return code, self.errors.read_text().count("\n")


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
