"""Engines of vLLM in the process of the tests, and what transformers answers to the same questions."""

from __future__ import annotations

import importlib.util
import os

import pytest

if importlib.util.find_spec("vllm") is not None:
    os.environ.setdefault("REGAZE_BACKEND", "torch")  # as on a GPU; test_compiled_kernel.py has the other
# Read when vllm is imported.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # by itself it wants a NUMA node for each worker
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed; `make test-vllm` has an environment with it"
        for item in items:
            if item.get_closest_marker("vllm") is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    """The demo model as vLLM reads it."""
    from regaze.serving.frontend.checkpoints import export_demo

    return export_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def asked():
    from served import Asked

    return Asked.first(12)


@pytest.fixture(scope="module")
def start(demo_folder):
    """Starts engines, which end with the module."""
    from served import engines

    with engines(demo_folder) as start:
        yield start


@pytest.fixture(scope="module")
def engine(start):
    """An engine with all defaults but its size."""
    return start()
