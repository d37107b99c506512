"""The kernels compile for GPUs that are not here, and keep what they carry in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import SUPPORT

triton = pytest.importorskip("triton")

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
LAUNCHES = SUPPORT / "kernel_launches.py"

#: Bytes of shared memory that a block may have. 8.0 has more, but 8.6 and 8.9 run its code with 99 KiB.
SHARED = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
#: Bytes of registers that spill, where a call is known to: an edit with every part at once. ptxas keeps the
#: merge of pages at 40 registers, to hold more blocks at a time, and puts a few values on the stack once.
SPILLS = {
    (90, "decode Lq=8 D=128 float16: everything"): 8,
    **{(90, f"pages of {size}, Lq=8 D=128 float16: everything"): 16 for size in (16, 128)},
    **{(100, f"pages of {size}, Lq=8 D=128 float16: everything"): 8 for size in (16, 128)},
}


@pytest.fixture(scope="module")
def every_kernel() -> list[dict[str, Any]]:
    """What the kernels of all calls use; of one process, as importing torch and Triton takes seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(LAUNCHES), *map(str, SHARED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this build of Triton has no cuobjdump")
@pytest.mark.parametrize("capability", sorted(SHARED))
def test_kernels_compile_without_spills_and_fit_into_shared_memory(every_kernel, capability):
    kernels = [kernel for kernel in every_kernel if kernel["capability"] == capability]
    assert {"split_kernel", "decode_merge_kernel", "head_kernel", "range_kernel"} <= {
        k["kernel"] for k in kernels
    }
    spilled = [k for k in kernels if k["stack"] + k["local"] > SPILLS.get((capability, k["call"]), 0)]
    assert not spilled, "\n".join(map(str, spilled))
    assert all(kernel["shared"] <= SHARED[capability] for kernel in kernels)
