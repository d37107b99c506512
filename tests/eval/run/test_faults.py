"""Runs that are killed, that use several processes, or lose one, end like an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from paths import SUPPORT
from standins import StandIn, lines, write_pope

import regaze
from regaze import HeadKnockout
from regaze.errors import InputError
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.run import process_group
from regaze.eval.run.generate import AnswerGenerator
from regaze.eval.run.process_group import ProcessGroup
from regaze.eval.run.requests import AnswerRequest, Condition
from regaze.eval.run.results import finite, read
from regaze.eval.run.runner import evaluate_benchmark

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(regaze.__file__).parents[1]), str(SUPPORT)]),
}


def faults(folder: Path, kills: int, seed: int) -> dict:
    command = [sys.executable, str(SUPPORT / "fault_runner.py"), str(folder), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked processes")
def test_a_run_killed_four_times_is_the_undisturbed_run(tmp_path):
    told = faults(tmp_path, 4, seed=0)
    assert (told["kills"], told["lost"]) == (4, 0)


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked processes")
def test_runs_killed_thirty_times_are_the_undisturbed_run(tmp_path):
    told = faults(tmp_path, 30, seed=1)
    assert (told["kills"], told["lost"]) == (30, 0)
    assert told["finished"] > 1
    assert len(set(told["answers after each"])) > 5  # they were killed at different places


# Several processes --------------------------------------------------------------------------------------


def request(number: int, images: tuple[str, ...]) -> AnswerRequest:
    return AnswerRequest(f"{number:032x}", tuple(map(Path, images)), f"{number}?")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_request_goes_to_one_process(size):
    asked = [request(n, (f"{n // 6}.png",)) for n in range(40)] + [request(n, ()) for n in range(40, 51)]
    parts = [ProcessGroup(rank, size).split(asked, 4) for rank in range(size)]
    assert sorted(r.key for part in parts for r in part) == sorted(r.key for r in asked)
    assert max(map(len, parts)) - min(map(len, parts)) <= 4
    for part in parts:  # what shares a prefix stays together, at most a batch of it
        places = [n for n, r in enumerate(part) if r.images == (Path("0.png"),)]
        assert len(places) in (0, 2, 4, 6)


def test_more_processes_than_questions():
    parts = [ProcessGroup(rank, 5).split([request(0, ()), request(1, ())], 4) for rank in range(5)]
    assert sorted(map(len, parts)) == [0, 0, 0, 1, 1]
    gaze = StandIn()
    generator = AnswerGenerator(gaze, Condition("m", None, {}, 0), batch_size=4)
    assert generator.make_batches([]) == []
    generator.warm_up([])
    assert gaze.prompts == []


def test_a_process_whose_partner_has_ended_says_so(monkeypatch):
    def closed(**options: object) -> None:
        raise RuntimeError("Connection closed by peer [127.0.1.1]:4471")

    monkeypatch.setattr(process_group, "_partial_state", closed)
    with pytest.raises(InputError, match="another process of this run has ended; its own message says why"):
        ProcessGroup(0, 2).barrier()


class Threads(ProcessGroup):
    """Processes that are threads of this one."""

    meeting: threading.Barrier

    def barrier(self) -> None:
        self.meeting.wait(timeout=60)

    def broadcast(self, value):
        if self.is_main:
            type(self).value = value
        self.barrier()
        return type(self).value


def test_processes_share_the_work_and_leave_one_result(tmp_path):
    pope = write_pope(tmp_path, [(image, label) for image in "abcde" for label in ("yes", "no")])
    whole = evaluate(StandIn(), [EvalTask(pope)], {}, tmp_path / "whole", model_name="m")
    gazes = [StandIn(), StandIn(), StandIn()]
    Threads.meeting = threading.Barrier(len(gazes))

    def one(rank: int) -> None:
        config = EvalConfig(batch_size=3, process_group=Threads(rank, len(gazes)))
        evaluate(gazes[rank], [EvalTask(pope)], {}, tmp_path / "out", model_name="m", config=config)

    with ThreadPoolExecutor(len(gazes)) as pool:
        list(pool.map(one, range(len(gazes))))
    assert sorted(len(gaze.prompts) - 1 for gaze in gazes) == [2, 4, 4]  # each also tries one question
    assert len(list((tmp_path / "out").glob("journal.*"))) == 3
    assert lines(tmp_path / "out/answers.jsonl") == lines(tmp_path / "whole/answers.jsonl")
    results = read(tmp_path / "out")
    assert results["processes"] == 3
    mine = results["benchmarks"]["pope"]["plain"]
    assert mine["figures"] == finite(whole)["benchmarks"]["pope"]["plain"]["figures"]
    assert mine["cost"]["answers"] == 10


def launch(folder: Path, *more: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", *more]
    arguments = ["evaluate", "pope", "--limit", "5", "--method", "knockout", "--set", "heads=[[0,0]]"]
    arguments += ["--batch-size", "4", "--device", "cpu", "--output", str(folder)]
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **environment},
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_of_which_one_dies_and_a_resume(tmp_path):
    """With gloo on the CPU. Rank 1 dies at its second batch; what both answered is not asked again."""
    dying = launch(tmp_path / "out", str(SUPPORT / "dying_rank.py"), REGAZE_TEST_DIES="1")
    assert dying.returncode != 0
    assert read(tmp_path / "out")["complete"] is False
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("journal.*")}
    assert kept["journal.1.jsonl"].count(b"\n") == 1

    resumed = launch(tmp_path / "out", "-m", "regaze")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("POPE all, demo: 15 questions") == 1
    for name, content in kept.items():
        assert (tmp_path / "out" / name).read_bytes().startswith(content)
    results = read(tmp_path / "out")
    assert (results["complete"], results["processes"]) == (True, 2)

    gaze = regaze.wrap(*regaze.load("demo"))
    alone = evaluate_benchmark(
        gaze,
        Pope.of_demo(5),
        HeadKnockout(heads=((0, 0),)),
        tmp_path / "alone",
        model_name="demo",
        max_new_tokens=16,
    )
    assert (tmp_path / "out/answers.jsonl").read_bytes() == (tmp_path / "alone/answers.jsonl").read_bytes()
    for condition in ("plain", "knockout"):
        ours = [
            each["plain"] if condition == "plain" else each["methods"]["knockout"]
            for each in (results["benchmarks"]["pope"], finite(alone)["benchmarks"]["pope"])
        ]
        assert ours[0]["figures"] == ours[1]["figures"]
        assert ours[0]["asked"] == ours[0]["cost"]["answers"] == ours[1]["cost"]["answers"]
