"""Fixtures for all tests: no network, few threads, and where material that is not in the repository lies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from paths import OWN_GOLDENS, SHARED

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tiny models gain nothing from several threads, and pytest-xdist's workers already share the cores. Processes
# that tests start know of it by the environment: a thread for each core would wait for others in busy loops.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Captions are scored with NLTK's data (punkt_tab, a tagger, WordNet), wherever it lies.
if (SHARED / "nltk_data").is_dir():
    os.environ.setdefault("NLTK_DATA", str(SHARED / "nltk_data"))

import hypothesis
import pytest
import torch

# A run in the background of a shell, or under nohup, inherits signals that are ignored, and regaze leaves
# ignored signals alone: those that tests send to the commands they start must arrive.
for number, handler in (("SIGINT", signal.default_int_handler), ("SIGTERM", None), ("SIGHUP", None)):
    if hasattr(signal, number) and signal.getsignal(getattr(signal, number)) is signal.SIG_IGN:
        signal.signal(getattr(signal, number), handler or signal.SIG_DFL)

# The same examples in every run: a red test is of the change at hand. HYPOTHESIS_PROFILE=explore draws anew.
# A busy machine fails nothing.
patient = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("steady", derandomize=True, **patient)
hypothesis.settings.register_profile("explore", derandomize=False, print_blob=True, **patient)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# Kernels run in Triton's interpreter where no GPU is; it is asked for when their modules are first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the goldens and files of others, which may not be in the repository."""
    assert SHARED.is_dir(), "tests that use it are left out where it is absent"
    return SHARED


#: Where goldens of one layout lie: of our own making (tests/data/goldens), and those of others.
GOLDENS = {"own": OWN_GOLDENS} | ({"shared": SHARED / "goldens"} if SHARED.is_dir() else {})


@pytest.fixture(scope="session", params=GOLDENS.values(), ids=GOLDENS)
def goldens(request) -> Path:
    """Folder with goldens: the tests that use it run on each."""
    return request.param


def pytest_collection_modifyitems(config, items):
    """Files with slow tests come first, so that no worker is left alone with one at the end.

    Without the folder of others' goldens one skipped test per module stands for all that need it.
    """
    slow = {item.path for item in items if any(map(item.get_closest_marker, ("slow", "exhaustive")))}
    items.sort(key=lambda item: item.path not in slow)
    if SHARED.is_dir():
        return
    needing: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            needing.setdefault(item.path, []).append(item)
    for module, tests in needing.items():
        reason = f"{len(tests)} tests in {module.name} need the goldens of others (REGAZE_SHARED)"
        tests[0].add_marker(pytest.mark.skip(reason=reason))
    left_out = {item for tests in needing.values() for item in tests[1:]}
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def model():
    """A random LLaVA; a test that changes its weights puts them back."""
    from models import tiny_llava

    return tiny_llava()


@pytest.fixture(scope="module")
def gaze(model):
    """The random LLaVA, wrapped."""
    from models import llava_processor

    import regaze

    return regaze.wrap(model, llava_processor())


@pytest.fixture(scope="session")
def placed():
    """The random LLaVA on the CPU, on one pretended device, and spread over two."""
    if torch.accelerator.is_available():
        pytest.skip("the pretended accelerator is for machines without one")
    from device_checks import DEVICE_MAP, Placed

    return Placed.llava(one=None, two=DEVICE_MAP)
