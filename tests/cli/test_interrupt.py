"""Signals end the command with one line and 128 + n, at any moment; nothing is lost or left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import SUPPORT

import regaze

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "RANK"},
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(regaze.__file__).parents[1]), str(SUPPORT)]),
}
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
INSTALLED = "from regaze.cli import interrupt; interrupt.current.install()\n"
READY = "print('ready', flush=True)\n"
#: Fills the pipe of standard error.
FILL = "import os; os.set_blocking(2, False)\ntry:\n while True: os.write(2, b' ' * 4096)\n"
FILL += "except BlockingIOError: os.set_blocking(2, True)\n"
SLEEP = "import time; time.sleep(60)\n"


def start(*command: str, folder: Path | None = None, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**ENVIRONMENT, **options.pop("environment", {})},
        **options,
    )


def ready(code: str, **options: object) -> subprocess.Popen[str]:
    """A process that runs `code`, once it has printed "ready"."""
    process = start("-c", code, **options)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def line(number: signal.Signals) -> str:
    return f"regaze: stopped by {number.name}\n"


def handled(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether the process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(each for each in status.splitlines() if each.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def wait_until_handled(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Return once the process has a handler for a signal."""
    end = time.monotonic() + 120
    while not handled(process, number):
        if process.poll() is not None:
            pytest.fail(
                f"ended with {process.returncode} before it handled {number.name}: {ended(process)[2]}"
            )
        if time.monotonic() > end:
            process.kill()
            pytest.fail(f"no handler of {number.name}; was it ignored where the tests were started?")
        time.sleep(0.001)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_one_line_and_its_code(number):
    process = ready(INSTALLED + READY + SLEEP)
    process.send_signal(number)
    assert ended(process) == (128 + number, "", line(number))


def test_the_advice_stands_behind():
    process = ready(INSTALLED + "interrupt.current.advice = '; go on'\n" + READY + SLEEP)
    process.terminate()
    assert ended(process) == (143, "", "regaze: stopped by SIGTERM; go on\n")


def test_of_two_signals_the_first_counts():
    """The second comes while the line of the first is written, to a pipe that is full."""
    process = ready(INSTALLED + FILL + READY + SLEEP)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    code, _, errors = ended(process)
    assert (code, errors.lstrip()) == (129, line(signal.SIGHUP))


def test_a_pipe_that_nobody_reads_does_not_hold_it():
    process = ready(INSTALLED + FILL + READY + SLEEP)
    process.terminate()
    assert process.wait(timeout=30) == 143


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_that_was_ignored_stays_ignored(number):
    """As nohup does with SIGHUP, and the shell with SIGINT for a process in the background."""
    code = INSTALLED + READY + "import time; time.sleep(0.3); print('done')\n"
    process = ready(code, preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))
    process.send_signal(number)
    assert ended(process) == (0, "done\n", "")


def test_it_ends_at_once_where_python_runs_no_handler():
    """As in a collective that waits for a lost process: here a mutex that is locked twice."""
    locked = "import ctypes; mutex = ctypes.create_string_buffer(64); libc = ctypes.CDLL(None)\n"
    locked += "libc.pthread_mutex_lock(mutex)\n" + READY + "libc.pthread_mutex_lock(mutex)\n"
    process = ready(INSTALLED + locked)
    time.sleep(0.2)
    process.terminate()
    assert ended(process) == (143, "", line(signal.SIGTERM))


@pytest.mark.parametrize(
    "busy",
    [
        "while True:\n try:\n  while True: pass\n except BaseException: pass\n",
        "class Loop:\n def __del__(self):\n  while True: pass\nLoop()\n",
        "try:\n  pass\nfinally:\n  while True: pass\n",
    ],
    ids=["except", "del", "finally"],
)
def test_no_code_can_swallow_it(busy):
    process = ready(INSTALLED + READY + busy)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", line(signal.SIGINT))


def test_what_was_being_written_is_removed(tmp_path):
    code = "from regaze.writing import replacing\nwith replacing('a.txt') as partial:\n"
    code += " partial.write_text('half')\n " + READY + " " + SLEEP
    process = ready(INSTALLED + code, folder=tmp_path)
    assert len(os.listdir(tmp_path)) == 1
    process.terminate()
    assert ended(process)[0] == 143
    assert os.listdir(tmp_path) == []


def test_a_signal_after_the_work_only_ends_it_sooner():
    process = ready(INSTALLED + "interrupt.current.code = 0\n" + READY + SLEEP)
    process.terminate()
    assert ended(process) == (0, "", "")


def test_of_several_processes_one_speaks():
    process = ready(INSTALLED + READY + SLEEP, environment={"RANK": "1"})
    process.terminate()
    assert ended(process) == (143, "", "")


def test_a_forked_process_ends_as_others_do():
    code = "import os, signal\nchild = os.fork()\nif not child:\n " + SLEEP
    code += "os.kill(child, signal.SIGTERM); print(os.waitpid(child, 0)[1], flush=True)\n"
    assert ended(start("-c", INSTALLED + code)) == (0, "15\n", "")


def test_signals_are_handled_before_anything_large_is_imported():
    code = "import sys; from regaze.cli import main, interrupt; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert {"signal", "threading", "regaze"} <= loaded
    assert not {"typer", "click", "rich", "yaml", "pydantic", "torch", "transformers", "numpy"} & loaded


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.15), (signal.SIGHUP, 0.8)], ids=str
)
def test_the_command_is_interrupted_while_it_imports(tmp_path, number, seconds):
    process = start("-m", "regaze", "evaluate", "pope", folder=tmp_path)
    wait_until_handled(process, signal.SIGHUP)
    time.sleep(seconds)
    process.send_signal(number)
    assert ended(process) == (128 + number, "", line(number))
    assert os.listdir(tmp_path) == []


def test_a_reader_that_has_seen_enough_is_no_error():
    process = start("-m", "regaze", "evaluate", "--help")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("--help",), ("evaluate", "--help")], ids=len)
def test_output_that_cannot_be_written_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "regaze", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert done.stderr == "regaze: error: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_messages_that_cannot_be_written_stop_nothing():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "regaze", "methods", "--jason"]
        assert subprocess.run(command, stderr=full, env=ENVIRONMENT, check=False).returncode == 2


def test_closed_streams_are_no_error():
    done = subprocess.run(
        [sys.executable, "-m", "regaze", "--help"],
        env=ENVIRONMENT,
        preexec_fn=lambda: os.closerange(0, 3),
        check=False,
    )
    assert done.returncode == 0


@pytest.mark.slow
def test_the_same_command_goes_on_in_the_same_folder(tmp_path):
    """As a user has it: no --output, a signal while it answers, and the command once more."""
    command = ("-m", "regaze", "evaluate", "pope", "--limit", "20", "--batch-size", "2", "--no-share-prefix")
    process = start(*command, folder=tmp_path)
    while not (journals := [path for path in tmp_path.glob("out/*/journal.0.jsonl") if path.stat().st_size]):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    folder = journals[0].parent
    advice = f"; what is done is in {folder.relative_to(tmp_path)}, and the same command continues"
    assert ended(process) == (129, "", f"regaze: stopped by SIGHUP{advice}\n")
    stored = journals[0].read_bytes()
    assert not (folder / "answers.jsonl").exists()

    for more in ((), ("--output", "undisturbed")):
        code, _, errors = ended(start(*command, *more, folder=tmp_path))
        assert (code, errors.count("\n")) == (0, 1), errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == [folder.name]
    assert journals[0].read_bytes().startswith(stored)
    undisturbed = tmp_path / "undisturbed/answers.jsonl"
    assert (folder / "answers.jsonl").read_bytes() == undisturbed.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interrupts", "finished", "places"),
    [(12, 1, 3), pytest.param(40, 2, 6, marks=pytest.mark.exhaustive)],
)
def test_interrupted_runs_are_the_undisturbed_run(tmp_path, interrupts, finished, places):
    """One and two signals at random moments of whole runs, until each has finished."""
    command = [sys.executable, str(SUPPORT / "interrupt_runner.py"), str(tmp_path), str(interrupts), "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["interrupts"] == interrupts
    assert told["finished"] >= finished
    assert len(set(told["answers after each"])) >= places  # they were stopped at different ones
