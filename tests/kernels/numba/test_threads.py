"""Statistics of many keys are worked out on several threads, and are the same."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch

pytest.importorskip("numba")

from regaze.kernels import StatsRequest
from regaze.kernels.numba import kernel, launch, threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ran_on(monkeypatch) -> list[str]:
    """The thread of each launch."""
    names, run = [], kernel.attend_calls

    def noted(*arguments):
        names.append(threading.current_thread().name)
        run(*arguments)

    monkeypatch.setattr(kernel, "attend_calls", noted)
    return names


def layers(count: int, keys: int):
    drawn = torch.Generator().manual_seed(count + keys)
    options = {"mask": None, "is_causal": False, "softcap": None, "sinks": None}
    return [
        (
            torch.randn(2, 8, 1, 32, generator=drawn),
            torch.randn(2, 4, keys, 32, generator=drawn),
            0.2,
            options,
        )
        for _ in range(count)
    ]


def statistics(asked) -> list[torch.Tensor]:
    found = launch.stats_of_layers_numba(asked, StatsRequest(entropy=True, lse=True, top1=True))
    return [part.clone() for part in found if part is not None]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_many_keys_are_shared_among_threads(two_threads, ran_on, monkeypatch, count):
    asked = layers(count, 1 + threads.ELEMENTS_PER_THREAD // (2 * 4 * 32))
    found = statistics(asked)
    assert len(ran_on) == 2
    assert len(set(ran_on)) == 2
    monkeypatch.setattr(threads, "ELEMENTS_PER_THREAD", 1 << 40)
    for one, other in zip(found, statistics(asked), strict=True):
        assert torch.equal(one, other)
    assert len(ran_on) == 3


def test_an_error_in_a_thread_is_raised(two_threads, monkeypatch):
    run, own = kernel.attend_calls, threading.current_thread()

    def failing(*arguments):
        if threading.current_thread() is not own:
            raise MemoryError
        run(*arguments)

    monkeypatch.setattr(kernel, "attend_calls", failing)
    with pytest.raises(MemoryError):
        statistics(layers(2, 1 + threads.ELEMENTS_PER_THREAD // (2 * 4 * 32)))


def test_few_keys_are_not(two_threads, ran_on):
    statistics(layers(6, 100))
    assert ran_on == [threading.current_thread().name]


def test_one_thread_of_torch_is_one_of_ours(two_threads, ran_on):
    torch.set_num_threads(1)
    statistics(layers(3, 1 + threads.ELEMENTS_PER_THREAD // (2 * 4 * 32)))
    assert len(ran_on) == 1


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own(two_threads):
    asked = layers(2, 1 + threads.ELEMENTS_PER_THREAD // (2 * 4 * 32))
    statistics(asked)  # the parent's exist now
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        request = StatsRequest(lse=True)
        torch.get_num_threads()
        sender.send(launch.stats_of_layers_numba(asked, request).lse.sum().item())

    process = context.Process(target=child)
    process.start()
    answered = receiver.poll(30)
    process.kill()
    assert answered
    assert receiver.recv() == pytest.approx(
        launch.stats_of_layers_numba(asked, StatsRequest(lse=True)).lse.sum().item(), abs=1e-3
    )
