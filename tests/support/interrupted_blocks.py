"""Interrupt blocks at random lines, and look for what is left of them.

    python tests/support/interrupted_blocks.py RUNS BY_SIGNAL

Prints how many runs were interrupted. Locks that an interrupt left locked would stop the thread that works at
the end.
"""

from __future__ import annotations

import ctypes
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from models import logits_of, tiny_llama

import regaze
from regaze.interventions import DoLa, HeadKnockout

KNOCK = HeadKnockout(heads=((1, 1), (0, 2)))


def in_thread(function: Callable[[], Any]) -> Any:
    """What a second thread returns or raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)  # one that is stuck holds nobody
    thread.start()
    thread.join(60)
    assert found, "it waits for a lock"
    return found[0]


def marks(model: Any) -> list[str]:
    """What regaze could leave in a model."""
    found = [f"{name}.{key}" for name, m in model.named_modules() for key in m.__dict__ if "regaze" in key]
    found += [key for key in model.__dict__ if key.startswith("_") and callable(model.__dict__[key])]
    for name, module in model.named_modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called):
            found += [f"{name}: hook" for _ in hooks]
    if model.config._attn_implementation != "sdpa":
        found.append(model.config._attn_implementation)
    return found


class Interrupts:
    """Interrupts the thread before the n-th, and later, line that runs in the block.

    With a signal, as Ctrl-C does, or with an exception that no signal handler can hold back.
    """

    def __init__(self, *lines: int, by_signal: bool = False):
        self.lines, self.by_signal, self.count = lines, by_signal, 0

    def __enter__(self) -> Interrupts:
        sys.settrace(self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        self.count += event == "line"
        if event == "line" and self.count in self.lines:
            if self.by_signal:
                signal.raise_signal(signal.SIGINT)
            else:  # an exception of the trace function itself would end the tracing
                thread = ctypes.c_ulong(threading.get_ident())
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(KeyboardInterrupt))
        return self


def work(gaze: Any, model: Any, prompt: Any) -> None:
    with gaze.using(), gaze.using(KNOCK, DoLa(layers=(1,))), gaze.recording(masses=False, entropy=True):
        model(**prompt)


def main(runs: int, by_signal: bool) -> int:
    torch.set_num_threads(1)
    prompt = {"input_ids": torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(0))}
    model, draw = tiny_llama(num_hidden_layers=2), random.Random(runs)
    gaze, plain = regaze.wrap(model), logits_of(model, prompt, 1)
    opened_once = gaze.using(KNOCK)(lambda: None)
    work(gaze, model, prompt)
    with Interrupts() as counted:
        work(gaze, model, prompt)
    interrupted = 0
    for run in range(runs):
        first = draw.randrange(1, counted.count)
        second = first + draw.randrange(1, (50, 1000)[run // 2 % 2]) if run % 2 else 0
        try:
            with Interrupts(first, second, by_signal=by_signal):
                work(gaze, model, prompt)
        except KeyboardInterrupt:
            interrupted += 1
        assert not marks(model), (first, second)
    assert in_thread(opened_once) is None  # nor a lock of ours that another thread would wait for
    if by_signal:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert torch.equal(logits_of(model, prompt, 1), plain)
    return interrupted


if __name__ == "__main__":
    print(main(int(sys.argv[1]), bool(int(sys.argv[2]))))
