"""Kills runs at random moments until each has finished, and compares what they leave with an undisturbed run.

    python tests/support/fault_runner.py FOLDER KILLS SEED

The model is loaded once; every run is a process forked from this one, killed by SIGKILL. Prints a line of
JSON.
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

import regaze
from regaze import Knockout
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.run.journal import read_batches
from regaze.eval.run.results import finite, read


def main(folder: Path, kills: int, seed: int) -> dict[str, object]:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    gaze = regaze.wrap(*regaze.load("demo"))
    task = EvalTask(Pope.of_demo(limit=12), {"max_new_tokens": 4})

    def run(output: Path, share: bool) -> None:
        config = EvalConfig(batch_size=3, share_prefix=share)
        methods = {"knockout": Knockout(heads=((0, 0),))}
        evaluate(gaze, [task], methods, output, model_name="demo", config=config)

    began = time.perf_counter()
    run(folder / "undisturbed", True)
    duration = time.perf_counter() - began
    chance = random.Random(seed)
    done, finished, lost, moments = 0, 0, 0, []
    while done < kills or not finished:
        output = folder / f"killed-{finished}"
        before = known(output)
        process = os.fork()
        if process == 0:
            run(output, chance.random() < 0.5)
            os._exit(0)
        if done < kills:
            time.sleep(chance.uniform(0.0, 0.8 * duration))
            os.kill(process, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(process, 0)[1])
        done += killed
        after = known(output)
        lost += len(before - after)
        moments.append(len(after))
        if not killed:
            check(folder / "undisturbed", output)
            finished += 1
    return {"kills": done, "finished": finished, "lost": lost, "answers after each": moments}


def known(output: Path) -> set[str]:
    """The requests that the journal has an answer to; none may be answered twice."""
    keys = [key for batch in read_batches(output) for key in batch.answers] if output.is_dir() else []
    assert len(keys) == len(set(keys)), "a request was answered twice"
    return set(keys)


def check(undisturbed: Path, output: Path) -> None:
    assert known(undisturbed) == known(output)
    assert (undisturbed / "answers.jsonl").read_bytes() == (output / "answers.jsonl").read_bytes()
    assert figures(undisturbed) == figures(output)


def figures(output: Path) -> object:
    results = read(output)
    assert results is not None
    assert results["complete"]
    asked = finite(results)["benchmarks"]["pope"]
    return [asked["plain"]["figures"], asked["methods"]["knockout"]["figures"]]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
