"""Fixtures for all tests: no network, few threads, and where material that is not in the repository lies."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch
from paths import SHARED

# The same examples in every run: a red test is of the change at hand. HYPOTHESIS_PROFILE=explore draws anew.
hypothesis.settings.register_profile("steady", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# Kernels run in Triton's interpreter where no GPU is; it is asked for when their modules are first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Tiny models gain nothing from several threads, and pytest-xdist's workers already share the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared():
    """Folder with the goldens and files that may not be in the repository; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder with goldens is absent (set REGAZE_SHARED)")
    return SHARED


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
