"""Kill runs at random moments until each has finished, and compare the output with an undisturbed run.

    python tests/support/fault_runner.py FOLDER KILLS SEED

The model is loaded once. Every run is a process that is forked from this one and killed by SIGKILL. Prints
one line of JSON.
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
from regaze import HeadKnockout
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.run.journal import read_batches
from regaze.eval.run.results import finite, read


def main(folder: Path, kills: int, seed: int) -> dict[str, object]:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    gaze = regaze.wrap(*regaze.load("demo"))
    task = EvalTask(Pope.of_demo(limit=12), {"max_new_tokens": 4})

    def run(output: Path, share: bool) -> None:
        config = EvalConfig(batch_size=3, share_prefix=share)
        methods = {"knockout": HeadKnockout(heads=((0, 0),))}
        evaluate(gaze, [task], methods, output, model_name="demo", config=config)

    began = time.perf_counter()
    run(folder / "undisturbed", True)
    duration = time.perf_counter() - began
    chance = random.Random(seed)
    done, finished, lost, moments = 0, 0, 0, []
    while done < kills or not finished:
        output = folder / f"killed-{finished}"
        before = answered(output)
        process = os.fork()
        if process == 0:
            run(output, chance.random() < 0.5)
            os._exit(0)
        if done < kills:
            time.sleep(chance.uniform(0.0, 0.8 * duration))
            os.kill(process, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(process, 0)[1])
        done += killed
        after = answered(output)
        lost += len(before - after)
        moments.append(len(after))
        if not killed:
            check(folder / "undisturbed", output)
            finished += 1
    return {"kills": done, "finished": finished, "lost": lost, "answers after each": moments}


def answered(output: Path) -> set[str]:
    """The requests with an answer in the journal; none may be answered twice."""
    keys = [key for batch in read_batches(output) for key in batch.answers] if output.is_dir() else []
    assert len(keys) == len(set(keys)), "a request was answered twice"
    return set(keys)


def check(undisturbed: Path, output: Path) -> None:
    assert answered(undisturbed) == answered(output)
    assert (undisturbed / "answers.jsonl").read_bytes() == (output / "answers.jsonl").read_bytes()
    assert figures(undisturbed) == figures(output)


def figures(output: Path) -> object:
    results = read(output)
    assert results is not None
    assert results["complete"]
    pope = finite(results)["benchmarks"]["pope"]
    return [pope["plain"]["figures"], pope["methods"]["knockout"]["figures"]]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
