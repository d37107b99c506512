"""A record file without a model behind it, and random damage to it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save

from regaze.toolkit.prompts.token_map import PromptTokens, Role, TokenMap, View
from regaze.toolkit.record.record import Record
from regaze.toolkit.record.trace import Trace

LAYERS, BATCH, HEADS, ROWS = 2, 2, 3, 4


def small_record() -> Record:
    """Two traces with every field; the second has cross-attention layers."""
    return Record(
        {
            "format": 2,
            "versions": {"regaze": "0.1.0", "torch": "2.13.0"},
            "model": {"type": "llava", "name": None},
            "wanted": {"masses": True, "layers": None, "rows": "last"},
        },
        [_trace(), _trace(cross=True)],
    )


def _trace(cross: bool = False) -> Trace:
    g = torch.Generator().manual_seed(0)
    common = {
        "row_position": torch.arange(8, 8 + ROWS),
        "row_step": torch.arange(ROWS),
        "row_active": torch.ones(BATCH, ROWS, dtype=torch.bool),
        "input_ids": torch.randint(0, 99, (BATCH, 9), generator=g),
        "output_ids": torch.randint(0, 99, (BATCH, ROWS), generator=g),
        "text": tuple(tuple(f" w{i}" for i in range(13)) for _ in range(BATCH)),
        "interventions": ({"method": "var", "moved": 0.5},),
    }
    return Trace(**common, **_layers(g), cross=Trace(**common, **_layers(g)) if cross else None)


def _layers(g: torch.Generator) -> dict[str, Any]:
    """What a trace holds of layers that attend to the same keys."""
    roles = (Role.SYSTEM, *[Role.IMAGE] * 6, Role.QUERY, Role.TAIL)
    view, cell = (-1, *[0] * 6, -1, -1), (-1, *range(6), -1, -1)
    prompt = PromptTokens(tuple(map(int, roles)), view, cell, (View((2, 3), 0, (0.0, 0.0, 1.0, 1.0), None),))
    size = (LAYERS, BATCH, HEADS, ROWS)
    return {
        "layers": (0, 3),
        "masses": torch.rand(*size, len(Role), generator=g),
        **{name: torch.rand(*size, generator=g) for name in ("entropy", "top_weight", "lse")},
        "top_column": torch.randint(0, 9, size, generator=g),
        "slices": torch.rand(*size, 6, generator=g),
        "slice_columns": torch.arange(1, 7).expand(BATCH, -1),
        "tokens": TokenMap.from_samples([prompt] * BATCH, torch.ones(BATCH, len(roles))),
    }


#: What a field may hold instead.
JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 3, 2**31, 10**9, 10**30, 1.5, 1e308, float("nan"), "", "x", "9" * 5000, "\ud800"),
    *([], [[]], [1], [None], ["x"], {}, {"a": 1}, [[[1, 2]]], [10**9, 10**9]),
)


def damage(data: bytes, rng: random.Random) -> bytes:
    """The file with one kind of damage."""
    kinds: list[Callable[[bytes, random.Random], bytes]] = [
        _bytes,
        _bytes_of_the_header,
        _cut,
        _json,
        _json,
        _json,
        _declared,
        _tensors,
        _tensors,
    ]
    return rng.choice(kinds)(data, rng)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(damaged)


def _bytes_of_the_header(data: bytes, rng: random.Random) -> bytes:
    damaged, end = bytearray(data), 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.randint(1, 3)):
        damaged[rng.randrange(end)] = (
            rng.choice(b'0123456789"{}[],:-eE. \x00\xff') if rng.random() < 0.8 else 255
        )
    return bytes(damaged)


def _cut(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.7 else data[:at] + data[at + rng.randint(1, 64) :]


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON of a safetensors file, and its tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _packed(header: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def _json(data: bytes, rng: random.Random) -> bytes:
    """One field of the regaze header changed, removed or nested deeply."""
    header, tensors = _parts(data)
    own = json.loads(header["__metadata__"]["regaze"])
    text = json.dumps(with_junk(own, rng))
    if rng.random() < 0.05:
        text = text.replace("[", "[" * rng.choice((200, 100_000)), 1)
    if rng.random() < 0.05:
        text = text.replace("0", "7" * 6000, 1)
    header["__metadata__"]["regaze"] = text
    return _packed(header, tensors)


def _declared(data: bytes, rng: random.Random) -> bytes:
    """One field of the safetensors header changed: huge shapes, other dtypes and offsets."""
    header, tensors = _parts(data)
    return _packed(with_junk(header, rng), tensors)


def with_junk(value: Any, rng: random.Random) -> Any:
    """JSON with one to four fields changed or removed."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        container, key = rng.choice(places)
        try:
            if rng.random() < 0.2:
                del container[key]
            else:
                container[key] = rng.choice(JUNK)
        except (KeyError, IndexError):
            pass  # an earlier change has removed the place
    return value


def _places(value: Any):
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _tensors(data: bytes, rng: random.Random) -> bytes:
    """One tensor removed, or of another shape, dtype or range."""
    header, _ = _parts(data)
    tensors = load(data)
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    change = rng.randrange(7)
    if change == 1:
        tensors[name] = tensor.flatten()
    elif change == 2:
        tensors[name] = tensor[None]
    elif change == 3:
        tensors[name] = tensor[..., : rng.randint(0, tensor.shape[-1])].contiguous()
    elif change == 4:
        tensors[name] = tensor.to(rng.choice((torch.float64, torch.int16, torch.uint8, torch.bfloat16)))
    elif change == 5:
        tensors[name] = torch.full(tensor.shape, rng.choice((-(2**31), -2, 7, 100, 2**31 - 1))).to(
            tensor.dtype
        )
    elif change == 6:
        tensors[name] = torch.cat([tensor, tensor], rng.randrange(tensor.dim()))
    return save(tensors, header["__metadata__"])
