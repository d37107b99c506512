"""Under a release of transformers that was not tested, a small model is tried before a block opens."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch
import transformers
from models import tiny_llama
from packaging.specifiers import SpecifierSet
from paths import ROOT
from transformers.cache_utils import Cache
from zoo.tiled import ENTRIES as TILED

import regaze
from regaze.errors import UnsupportedModelError
from regaze.toolkit.model import compat, release_check
from regaze.toolkit.model.compat import cache, generation


@pytest.fixture
def pretend(monkeypatch):
    """Pretends another version of transformers; nothing tried before counts."""

    def as_if(version: str) -> None:
        monkeypatch.setattr(compat, "installed_release", lambda: version)

    release_check._try_release.cache_clear()
    yield as_if
    release_check._try_release.cache_clear()


def open_blocks(count: int = 1) -> None:
    gaze = regaze.wrap(tiny_llama())
    for _ in range(count):
        with gaze.using():
            pass
        with gaze.recording():
            gaze.model(torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize(
    ("version", "tested"),
    [
        ("5.17.0", True),
        ("5.20.2", True),
        ("5.24.0", True),
        ("5.24.9", True),
        ("5.16.1", False),
        ("5.25.0", False),
        ("6.0.0", False),
        ("5.24.0.dev0", False),
        ("5.25.0.dev0", False),
        ("5.24.0rc1", False),
        ("5.24.0+fork", False),
    ],
)
def test_which_releases_are_tested(version, tested):
    assert compat.is_tested(version) == tested


def test_the_package_and_the_constraints_name_the_same_releases():
    project, pins = ((ROOT / name).read_text("utf-8") for name in ("pyproject.toml", "constraints.txt"))
    (bounds,) = re.findall(r'^  "transformers([<>=.,\d]+)"', project, re.MULTILINE)
    major, minor = compat.NEWEST.split(".")
    assert SpecifierSet(bounds) == SpecifierSet(f">={compat.OLDEST},<{major}.{int(minor) + 1}")
    (pinned,) = re.findall(r"^transformers==(\S+)", pins, re.MULTILINE)
    assert pinned.rsplit(".", 1)[0] == compat.NEWEST


def test_the_installed_release_is_the_imported_one():
    assert compat.installed_release() == transformers.__version__


def test_a_tested_release_is_not_tried(pretend, monkeypatch):
    monkeypatch.setattr(release_check, "_first_difference", lambda: pytest.fail("was tried"))
    for version in (compat.OLDEST + ".0", compat.NEWEST + ".0"):
        pretend(version)
        open_blocks()


@pytest.mark.parametrize("version", ["5.99.0", "5.25.0.dev0", "6.0.0"])
def test_an_unknown_release_that_works_is_tried_once(pretend, monkeypatch, version):
    pretend(version)
    tried: list[int] = []
    whole = release_check._first_difference
    monkeypatch.setattr(release_check, "_first_difference", lambda: tried.append(1) or whole())
    gaze = regaze.wrap(model := tiny_llama())
    assert not tried
    start = time.process_time()
    with gaze.using():
        pass
    assert time.process_time() - start < 1.0
    open_blocks(2)
    assert tried == [1]
    assert not [name for m in model.modules() for name in vars(m) if "regaze" in name]


def test_the_try_leaves_random_numbers_and_defaults_alone(pretend):
    pretend("5.99.0")
    gaze = regaze.wrap(tiny_llama())
    state = torch.random.get_rng_state()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode(), gaze.using():
            pass
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(state, torch.random.get_rng_state())


class Breaks:
    """What a release might do to regaze, one method each."""

    @staticmethod
    def cache_argument_renamed(patch: Any) -> None:
        patch.setattr(cache, "CACHE_NAMES", ("kv",))

    @staticmethod
    def cache_not_in_the_output(patch: Any) -> None:
        patch.setattr(compat, "cache_of", lambda output: None)

    @staticmethod
    def length_of_the_cache_wrong(patch: Any) -> None:
        own = Cache.get_seq_length
        patch.setattr(Cache, "get_seq_length", lambda self, *rest: own(self, *rest) + 1)

    @staticmethod
    def interface_not_asked(patch: Any) -> None:
        from transformers import AttentionInterface

        def sdpa(*args: Any, **options: Any) -> Any:
            return transformers.integrations.sdpa_attention.sdpa_attention_forward(*args, **options)

        patch.setitem(AttentionInterface._global_mapping, compat.IMPLEMENTATION, sdpa)

    @staticmethod
    def padding_dropped(patch: Any) -> None:
        from transformers import AttentionMaskInterface

        patch.setitem(
            AttentionMaskInterface._global_mapping, compat.IMPLEMENTATION, lambda *args, **options: None
        )

    @staticmethod
    def beams_reordered_otherwise(patch: Any) -> None:
        patch.delattr(cache._FollowsRows, "reorder_cache")

    @staticmethod
    def method_of_generate_renamed(patch: Any) -> None:
        patch.setattr(generation, "_REPLACED", ("_expands_inputs_in_another_way",))

    @staticmethod
    def generate_fails(patch: Any) -> None:
        patch.setattr(transformers.LlamaForCausalLM, "generate", None)


@pytest.mark.parametrize("name", [name for name in vars(Breaks) if not name.startswith("__")])
def test_an_unknown_release_that_breaks_something_raises(pretend, monkeypatch, name):
    pretend("5.99.0")
    getattr(Breaks, name)(monkeypatch)
    gaze = regaze.wrap(model := tiny_llama())
    for _ in range(2):  # each time
        message = r"does not work with transformers 5\.99\.0: .*tested with 5\.17 to 5\.24; .*pip install"
        with pytest.raises(UnsupportedModelError, match=message), gaze.using():
            pytest.fail("the block opened")
    with pytest.raises(UnsupportedModelError, match="tested with"), gaze.recording():
        pytest.fail("the block opened")
    assert compat.current_attention(model) != compat.IMPLEMENTATION


def test_a_family_that_a_release_cannot_run_is_refused_by_name(pretend):
    entry = next(entry for entry in TILED if entry.name == "llama4")
    gaze = regaze.wrap(*entry.build())
    pretend("5.24.0")
    with pytest.raises(UnsupportedModelError, match=r"5\.24\.0 itself cannot run 'llama4': .*image_outputs"):
        gaze.using().__enter__()
