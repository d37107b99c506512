"""Compiles kernels for GPUs that are not here, exactly as `attend` would launch them, and says what they use.

`python tests/support/kernel_launches.py 80 90` prints a line of JSON per kernel: the compute capability, its
call, its name, registers, bytes of stack (where spilled registers go) and of shared memory. A call runs on
CPU tensors with a driver that only names its GPU: every launch binds its arguments and compiles, and nothing
is launched. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from prefill_launches import prefill_calls
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import AttentionEdit, Channels, StatsRequest
from regaze.kernels.pages import Pages
from regaze.kernels.triton import call, decode, row_list
from regaze.kernels.triton.launch import attend_paged_triton, attend_triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
PROCESSORS = 132


class NamedDriver:
    """As much of a driver as compiling needs."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton remembers compiled kernels by the number of the device

    def get_current_stream(self, device: int) -> int:
        return 0


def launched(capability: int, launch: Callable[[], Any]) -> list[Any]:
    """The kernels that `launch` would launch on a GPU of this compute capability (90 for 9.0), compiled."""
    kernels = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))
        return kernels[-1]

    driver.set_active(NamedDriver(capability))
    JITFunction.run = compile_only
    try:
        launch()
    finally:
        JITFunction.run = run
    return kernels


def compiled(capability: int, launch: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    """What each of these kernels uses."""
    for kernel in launched(capability, launch):
        yield {"kernel": kernel.metadata.name, "shared": kernel.metadata.shared} | usage(kernel.asm["cubin"])


def usage(cubin: bytes) -> dict[str, int]:
    """Registers of a thread and bytes of its stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        name.lower(): int(re.search(rf"{name}:(\d+)", said)[1])  # type: ignore[index]
        for name in ("REG", "STACK", "LOCAL")
    }


def tensors(
    queries: int, keys: int, dim: int, dtype: torch.dtype, heads: int, kv_heads: int, batch: int = 1
) -> list[Tensor]:
    return [
        torch.empty(batch, heads, queries, dim, dtype=dtype),
        *(torch.empty(batch, kv_heads, keys, dim, dtype=dtype) for _ in range(2)),
    ]


def edits(n: int, heads: int, queries: int) -> dict[str, AttentionEdit]:
    """Edits by what they make a kernel carry."""
    groups = torch.zeros(1, n, dtype=torch.uint8)
    roles = Channels(groups, 7)
    record = StatsRequest(channels=roles, entropy=True, top1=True, lse=True)
    var = AttentionEdit(channels=Channels(groups, 4), policy=MoveMass(4, (1, 2), (3,), (2, 3), 0.6, 0.3, 0.1))
    gift = AttentionEdit(
        channels=Channels(groups, 3, torch.empty(1, 1, n)),
        policy=AmplifyTopHeads(4, 1, 2, 3, heads=heads // 2),
    )
    column = torch.empty(1, heads, n)
    return {
        "plain": AttentionEdit(),
        "record": AttentionEdit(stats=record),
        "bias": AttentionEdit(bias=column),
        "var": var,
        "var, record": var.replace(stats=record),
        "gift": gift,
        "everything": var.replace(
            stats=record,
            bias=column,
            score_slope=column,
            score_gain=column,
            value_gain=column,
            head_score_gain=torch.empty(1, heads),
            sink=torch.empty(1, heads, queries),
            head_gain=torch.empty(1, heads, queries),
        ),
    }


def decode_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls of `attend` with few query rows, by name: Qwen2.5-VL-7B, and other head dimensions and types."""
    shapes = [(1, 128, torch.bfloat16, name) for name in edits(1000, 28, 1)]
    shapes += [(8, 128, torch.float16, name) for name in ("plain", "everything")]
    shapes += [(1, dim, torch.bfloat16, name) for dim in (64, 80) for name in ("plain", "var, record")]
    shapes += [(1, 128, torch.float32, name) for name in ("plain", "everything")]
    for queries, dim, dtype, name in shapes:
        q, k, v = tensors(queries, 4096, dim, dtype, 28, 4)
        edit = edits(1000, 28, queries)[name]
        options: dict[str, Any] = {"mask": None, "scaling": 0.1, "is_causal": queries > 1}
        if name == "everything":
            mask = torch.zeros(1, 1, queries, 4096, dtype=dtype)
            options |= {"mask": mask, "softcap": 30.0, "sinks": torch.zeros(28, dtype=dtype)}
        label = f"decode Lq={queries} D={dim} {str(dtype).removeprefix('torch.')}: {name}"
        yield label, lambda q=q, k=k, v=v, e=edit, o=options: attend_triton(q, k, v, e, **o)
    for name in ("plain", "var, record"):  # enough samples that a row has one split
        q, k, v = tensors(1, 1000, 128, torch.bfloat16, 28, 4, batch=80)
        options = {"mask": None, "scaling": 0.1, "is_causal": False}
        label = f"decode of 80 samples: {name}"
        yield label, partial(attend_triton, q, k, v, edits(1000, 28, 1)[name], **options)


def paged_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls of `attend_paged` by name: tiles inside a page, and pages inside a tile."""
    shapes = [(1, 128, torch.bfloat16, name) for name in ("plain", "record", "bias", "var, record", "gift")]
    shapes += [(8, 128, torch.float16, name) for name in ("plain", "everything")]
    shapes += [(1, 80, torch.bfloat16, "var, record"), (1, 128, torch.float32, "everything")]
    for (queries, dim, dtype, name), page in product(shapes, (128, 16)):
        q, k, v = tensors(queries, page, dim, dtype, 28, 4, batch=300)
        pages = Pages(torch.zeros(2, 4096 // page, dtype=torch.int32), torch.full((2,), 4000))
        options: dict[str, Any] = {"scaling": 0.1, "softcap": None, "sinks": None}
        if name == "everything":
            options |= {"softcap": 30.0, "sinks": torch.zeros(28, dtype=dtype)}
        label = f"pages of {page}, Lq={queries} D={dim} {str(dtype).removeprefix('torch.')}: {name}"
        edit = edits(1000, 28, queries)[name]
        yield label, partial(attend_paged_triton, q[:2], k, v, pages, edit, **options)


def stand_for(capability: int) -> None:
    """Cut calls on CPU tensors as on a GPU of this compute capability."""
    for module in (decode, row_list):
        module.processors = lambda device: PROCESSORS
    for module in (decode, call):
        module.architecture = lambda device: f"sm_{capability}"


def main() -> None:
    warnings.simplefilter("ignore")
    for capability in map(int, sys.argv[1:]):
        stand_for(capability)
        for label, run in (*decode_calls(), *paged_calls(), *prefill_calls()):
            for kernel in compiled(capability, run):
                print(json.dumps({"capability": capability, "call": label} | kernel), flush=True)


if __name__ == "__main__":
    main()
