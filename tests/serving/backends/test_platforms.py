"""Engines whose attention is not that of regaze refuse edited requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from regaze.serving.backends import platforms

pytestmark = pytest.mark.vllm


def on(monkeypatch, *, cpu: bool, processor: str = "X86", amx: bool = False) -> None:
    import vllm.platforms

    machine = SimpleNamespace(name=processor)
    platform = SimpleNamespace(is_cpu=lambda: cpu, get_cpu_architecture=lambda: machine)
    monkeypatch.setattr(vllm.platforms, "current_platform", platform)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.delenv("REGAZE_SERVING", raising=False)


def config(backend: str | None = None, dtype: torch.dtype = torch.float32, **kinds: str) -> Any:
    named = None if backend is None else SimpleNamespace(name=backend)
    by_kind = {kind: SimpleNamespace(name=name) for kind, name in kinds.items()}
    attention = SimpleNamespace(backend=named, backend_per_kind=by_kind)
    return SimpleNamespace(attention_config=attention, model_config=SimpleNamespace(dtype=dtype))


@pytest.mark.parametrize("other", [config(), config("FLASH_ATTN"), config("CUSTOM", full="FLASH_ATTN")])
def test_a_gpu_needs_the_backend(monkeypatch, other):
    on(monkeypatch, cpu=False)
    assert "--attention-backend CUSTOM" in platforms.without_edits(other)
    assert platforms.without_edits(config("CUSTOM")) is None


@pytest.mark.parametrize("processor", ["ARM", "POWERPC", "S390X", "RISCV", "OTHER"])
def test_pages_of_other_processors_are_not_read(monkeypatch, processor):
    on(monkeypatch, cpu=True, processor=processor)
    assert "regaze reads those of x86" in platforms.without_edits(config())


def test_amx_kernels_stay_unless_they_are_given_up(monkeypatch):
    from regaze.serving.backends.cpu import EditedCPUBuilder

    on(monkeypatch, cpu=True, amx=True)
    half = config(dtype=torch.bfloat16)
    assert "REGAZE_SERVING=1" in platforms.without_edits(half)
    assert platforms.without_edits(config()) is None
    assert kernels(monkeypatch, EditedCPUBuilder) == "amx"
    monkeypatch.setenv("REGAZE_SERVING", "1")
    assert platforms.without_edits(half) is None
    assert kernels(monkeypatch, EditedCPUBuilder) == "vec"


def kernels(monkeypatch, builder: Any) -> str:
    def built(self, *args):
        self.isa = "amx"

    monkeypatch.setattr(builder.__mro__[1], "__init__", built)
    monkeypatch.setattr(builder, "_set_isa_to_layers", lambda self, names: None)
    made: Any = builder(None, [], None, None)
    return str(made.isa)
