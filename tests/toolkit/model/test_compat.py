"""The names of transformers' arguments, which releases change, and edits of a cache."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from models import tiny_llama
from transformers import DynamicCache, StaticCache

import regaze
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback


@pytest.fixture
def cache() -> DynamicCache:
    """Two layers, two rows, four columns; every key holds its column's number."""
    cache = DynamicCache()
    for layer in range(2):
        keys = torch.arange(4.0).view(1, 1, 4, 1).expand(2, 3, 4, 5).clone()
        cache.update(keys, -keys, layer)
    return cache


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_cache_is_found_under_the_name_of_any_release(name, cache):
    assert compat.cache_argument({"input_ids": 1, name: cache}) is cache
    assert compat.cache_argument({"input_ids": 1, name: None}) is None
    assert compat.without_cache({"input_ids": 1, name: cache}) == {"input_ids": 1, "use_cache": False}
    other = DynamicCache()
    going_on = compat.with_cache({"input_ids": 1, name: cache}, other)
    assert compat.cache_argument(going_on) is other
    assert len(going_on) == 3  # the cache is not passed twice


def test_the_model_takes_the_argument_and_returns_the_cache():
    model, ids = tiny_llama(), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=True)
        first = model(input_ids=ids[:, :3], use_cache=True)
        cache = compat.cache_of(first)
        rest = model(**compat.with_cache(compat.last_row({"input_ids": ids}), cache))
        assert compat.cache_of(model(**compat.without_cache({"input_ids": ids}))) is None
    assert compat.cache_of(rest) is cache
    assert compat.cache_length(cache) == 4
    torch.testing.assert_close(rest.logits[:, -1], whole.logits[:, -1], rtol=1e-4, atol=1e-5)


def test_rows_and_columns_of_a_cache(cache):
    assert compat.is_forkable(cache)
    compat.keep_columns(cache, torch.tensor([[1, 3], [0, 2]]))
    assert cache.layers[1].keys[:, 0, :, 0].tolist() == [[1.0, 3.0], [0.0, 2.0]]
    assert cache.layers[1].values[:, 2, :, 4].tolist() == [[-1.0, -3.0], [0.0, -2.0]]
    compat.crop_last(cache)
    compat.keep_columns(cache, torch.tensor([[0, 0, 0], [0, 0, 0]]))
    for owner, name, value in 2 * compat.users_part(cache, rows=1, hidden=2):  # setting them can be repeated
        setattr(owner, name, value)
    assert cache.layers[0].keys.shape == (1, 3, 1, 5)


def test_the_last_row_of_a_prompt():
    inputs = {
        "input_ids": torch.arange(6).view(2, 3),
        "attention_mask": torch.ones(2, 3),
        "position_ids": torch.arange(3).expand(2, 3),
        "pixel_values": torch.zeros(2, 3, 4, 4),
    }
    last = compat.last_row(inputs)
    assert last["input_ids"].tolist() == [[2], [5]]
    assert last["position_ids"].tolist() == [[2], [2]]
    assert last["attention_mask"].shape == (2, 3)  # over the cache, too
    assert "pixel_values" not in last


class ReadLength(torch.Tensor):
    """The length of a static cache; notes when the host reads it."""

    reads: ClassVar[list[int]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__int__:
            cls.reads.append(1)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_the_host_counts_the_columns_of_a_static_cache_that_goes_on():
    """It reads them after the prompt; a cache that was reset or cropped is read anew."""
    model, ids = tiny_llama(), torch.tensor([[5, 6, 7, 8, 9, 10]])
    cache = StaticCache(config=model.config, max_cache_len=12)

    def run(first: int, last: int) -> torch.Tensor:
        return model(**compat.with_cache({"input_ids": ids[:, first:last]}, cache)).logits[:, -1]

    with regaze.wrap(model).using(Callback()), torch.no_grad():
        whole = run(0, 6)
        assert compat.cache_length(cache) == 6
        cache.reset()
        assert compat.cache_length(cache) == 0
        run(0, 3)
        length = cache.layers[0].cumulative_length
        cache.layers[0].cumulative_length = length.as_subclass(ReadLength)
        ReadLength.reads.clear()
        run(3, 4)
        run(4, 5)
        assert not ReadLength.reads
        if hasattr(cache.layers[0], "crop"):  # not in transformers 5.17
            compat.crop_last(cache)
            assert compat.cache_length(cache) == 4
            assert ReadLength.reads
            run(4, 5)
        torch.testing.assert_close(run(5, 6), whole)
    assert compat.cache_length(cache) == 6
