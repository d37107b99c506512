"""Blocks belong to one thread, and leave nothing behind however they are interrupted."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted_blocks import in_thread, marks
from models import llava_processor, logits_of, picture, tiny_llama, tiny_llava
from paths import SUPPORT

import regaze
from regaze.errors import InputError
from regaze.interventions import DoLa, HeadKnockout
from regaze.toolkit.model import block
from regaze.toolkit.model.block import Block
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.uninterrupted import Uninterrupted

KNOCK = HeadKnockout(heads=((1, 1), (0, 2)))
RULE = "open in another thread; only the thread that opened a block"


@pytest.fixture
def text_model() -> Any:
    return tiny_llama(num_hidden_layers=2)


@pytest.fixture(scope="module")
def prompt():
    return {"input_ids": torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(0))}


# Threads --------------------------------------------------------------------------------------------------


def test_another_thread_is_refused_and_the_first_is_undisturbed(text_model, prompt):
    gaze, plain = regaze.wrap(text_model), logits_of(text_model, prompt)
    with gaze.using(KNOCK):
        edited = logits_of(text_model, prompt)

    def opening() -> None:
        with gaze.using(KNOCK):
            pass

    attempts = [
        lambda: text_model(**prompt),
        lambda: text_model.model(**prompt),
        lambda: text_model.generate(**prompt, max_new_tokens=2),
        opening,
    ]
    refused = []

    class Meanwhile(Callback):
        """Tries them inside a forward of the first thread, too."""

        def edit(self, layer, step, context):
            if layer == 1:
                refused.extend(in_thread(attempt) for attempt in attempts)

    for blocks in [(KNOCK,), (), (Meanwhile(), KNOCK), (DoLa(layers=(1,), weight=1e-9, beta=0.0), KNOCK)]:
        with gaze.using(*blocks):
            refused += [in_thread(attempt) for attempt in attempts]
            got = logits_of(text_model, prompt)
            torch.testing.assert_close(got.softmax(-1), (edited if blocks else plain).softmax(-1))
    assert len(refused) == 4 * 4 + 5 * 4
    for error in refused:
        assert isinstance(error, InputError)
        assert RULE in str(error)
    assert not marks(text_model)
    assert torch.equal(in_thread(lambda: logits_of(text_model, prompt)), plain)


def test_a_part_of_the_model_in_another_thread(prompt):
    model = tiny_llava()
    gaze = regaze.wrap(model, llava_processor())
    inputs = gaze.inputs([picture(1)], ["What?"])
    with gaze.using(KNOCK):
        edited = logits_of(model, inputs)
        part = regaze.wrap(model.model.language_model)

        def opening() -> None:
            with part.using(KNOCK):
                pass

        for attempt in (opening, lambda: model.generate(**inputs, max_new_tokens=1)):
            assert RULE in str(in_thread(attempt))
        assert torch.equal(logits_of(model, inputs), edited)
    assert model.config.text_config._attn_implementation == "sdpa"
    assert not [key for m in model.modules() for key in m.__dict__ if "regaze" in key]


def test_threads_that_race_for_a_model_leave_it_as_it_was(text_model, prompt):
    gaze, plain = regaze.wrap(text_model), logits_of(text_model, prompt, 1)
    with gaze.using(KNOCK):
        edited = logits_of(text_model, prompt, 1)
    found: list[Any] = []

    def work() -> None:
        for _ in range(10):
            try:
                with gaze.using(KNOCK):
                    found.append(torch.equal(logits_of(text_model, prompt, 1), edited))
            except InputError as error:
                found.append(RULE in str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    assert all(found)
    assert not marks(text_model)
    assert torch.equal(logits_of(text_model, prompt, 1), plain)


def test_a_block_is_a_decorator_too(text_model, prompt):
    gaze = regaze.wrap(text_model)

    @gaze.using(KNOCK)
    def edited() -> torch.Tensor:
        return logits_of(text_model, prompt, 1)

    first = edited()
    assert torch.equal(first, edited())
    assert not torch.equal(first, logits_of(text_model, prompt, 1))


# Interrupts -----------------------------------------------------------------------------------------------


class Interrupting(Callback):
    """Raises what Ctrl-C raises, in the middle of a forward that has hooks on every layer."""

    needs_hidden_states = True

    def edit(self, layer, step, context):
        if layer == 1:
            raise KeyboardInterrupt

    def edit_mlp(self, layer, hidden, context):
        return hidden


def test_an_interrupted_block_inside_an_empty_one_leaves_no_hook(text_model, prompt):
    gaze, plain = regaze.wrap(text_model), logits_of(text_model, prompt)
    with gaze.using():
        with pytest.raises(KeyboardInterrupt), gaze.using(Interrupting()):
            text_model(**prompt)
        layers = [*text_model.model.layers, *(layer.mlp for layer in text_model.model.layers)]
        assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)
        assert torch.equal(logits_of(text_model, prompt), plain)
    assert not marks(text_model)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_block_closes_waits_until_it_is_closed(text_model, monkeypatch, number):

    def closing(*args: Any) -> None:
        signal.raise_signal(number)
        close(*args)
        reached.append(True)

    def stop(*args: Any) -> None:
        raise SystemExit(128 + number)

    close, reached = block.close_session, []
    before = signal.signal(number, stop)
    try:
        with pytest.raises(SystemExit), regaze.wrap(text_model).using(KNOCK):
            monkeypatch.setattr(block, "close_session", closing)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert reached == [True]
    assert not marks(text_model)


@pytest.mark.parametrize("by_signal", [True, False], ids=["signal", "exception"])
@pytest.mark.parametrize("runs", [20, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_nothing_is_left_behind_whatever_is_interrupted(runs, by_signal):
    """In a process of its own: libraries have locks, too, which an interrupt can leave locked for good."""
    paths = os.pathsep.join([str(Path(regaze.__file__).parents[1]), str(SUPPORT)])
    command = [sys.executable, str(SUPPORT / "interrupted_blocks.py"), str(runs), str(int(by_signal))]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 0.9 * runs


def test_a_block_that_is_interrupted_before_it_begins_to_close_is_closed_when_nobody_keeps_it(
    prompt, monkeypatch
):
    model = tiny_llama(num_hidden_layers=2)
    gaze, restore = regaze.wrap(model), Uninterrupted._restore

    def interrupted(self):
        signal.raise_signal(signal.SIGINT)  # the block is open, and is about to be entered
        restore(self)

    def close(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Uninterrupted, "_restore", interrupted)
    monkeypatch.setattr(Block, "_close", close)
    gc.disable()  # nothing but the last reference may be needed
    try:
        with pytest.raises(KeyboardInterrupt), gaze.using(KNOCK):
            raise AssertionError
        monkeypatch.undo()
        assert not marks(model)
    finally:
        gc.enable()
