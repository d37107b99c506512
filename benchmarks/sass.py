"""What the kernels spend per key, read off their binaries: no GPU takes part, and nothing is timed.

    python benchmarks/sass.py [--output benchmarks/results/sass.json] [--architectures 80 90 100]
        [--calls "decode bfloat16: plain" ...]

Every kernel that a call launches is compiled as on such a GPU. Registers and stack are those of the binary;
programs per multiprocessor follow from them and from shared memory. The main loop is the shortest loop that
holds tensor core instructions, from its label to the branch back; its instructions and the bytes of its
asynchronous copies, over all warps, are divided by the keys of a step.

The bound is computed: a multiprocessor needs so many cycles for a step because each of its pipes takes so
many. In that time it cannot read more than the keys and values of the step, and so the kernel no more than a
share of the memory bandwidth. What else may hold it up (latencies, barriers, other pipes) only lowers this.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from kernel_launches import CUOBJDUMP, decode_calls, launched, stand_for, usage
from prefill_launches import prefill_calls


class Gpu(NamedTuple):
    """Public figures of a GPU, and rates of its multiprocessors per clock.

    Attributes:
        clock: GHz; where no boost clock is given, the one at which the published dense bfloat16 rate is
            reached.
        bandwidth: of memory, GB/s.
        shared: KiB of shared memory of a multiprocessor.
        products: multiplications and additions of the tensor cores per clock and multiprocessor, 16 bits.
    """

    name: str
    processors: int
    clock: float
    bandwidth: int
    shared: int
    products: int


#: By architecture.
GPUS = {
    # NVIDIA A100 datasheet (80 GB SXM: 2,039 GB/s), A100 whitepaper (108 SMs, 1,410 MHz, 1,024 FMA a clock).
    80: [Gpu("A100 80GB", 108, 1.41, 2039, 164, 1024)],
    # NVIDIA H100 and H200 datasheets (3.35 and 4.8 TB/s, 989 TFLOP/s), H100 whitepaper (132 SMs, 2,048 FMA a
    # clock): 989e12 / (132 * 2 * 2048) = 1.83 GHz.
    90: [Gpu("H100 SXM", 132, 1.83, 3350, 228, 2048), Gpu("H200", 132, 1.83, 4800, 228, 2048)],
    # NVIDIA HGX B200 datasheet (8 TB/s, 2.25 PFLOP/s dense), 148 SMs, 4,096 FMA a clock: 1.86 GHz.
    100: [Gpu("B200", 148, 1.86, 8000, 228, 4096)],
}
#: Of a multiprocessor: registers, warps, programs, schedulers that each issue an instruction per clock; lanes
#: of the unit for exp2 and 1/x per clock, bytes of shared memory per clock. CUDA C++ Programming Guide, the
#: tables of compute capabilities and of arithmetic throughput; the same in 8.0, 9.0 and 10.0.
REGISTERS, WARPS, PROGRAMS, SCHEDULERS, SPECIAL_LANES, SHARED_BYTES = 65536, 64, 32, 4, 16, 128
LANES = 32
#: Of a bfloat16.
BYTES = 2

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T\d]\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
TENSOR = re.compile(r"^(HMMA|HGMMA|IMMA|UTC\w*MMA)")
SHAPE = re.compile(r"\.(\d+)x(\d+)x(\d+)|\.(16)(8)(8|16)\b")


class Instruction(NamedTuple):
    """An instruction of a listing of cuobjdump."""

    address: int
    opcode: str
    operands: str

    @property
    def is_tensor(self) -> bool:
        return TENSOR.match(self.opcode) is not None

    @property
    def bytes(self) -> int:
        """Bytes of a lane that a load, store or copy moves."""
        for part in self.opcode.split("."):
            if part in ("U8", "S8", "U16", "S16", "64", "128"):
                return int(re.sub("[US]", "", part)) // 8
        return 4

    @property
    def products(self) -> int:
        """Multiplications and additions of a warp; 0 where descriptors hold the shape."""
        found = SHAPE.search(self.opcode) if self.is_tensor else None
        if found is None:
            return 0
        m, n, k = (int(part) for part in found.groups() if part is not None)
        return m * n * k // (4 if self.opcode.startswith("HGMMA") else 1)  # four warps share a wgmma

    @property
    def shared_bytes(self) -> int:
        """Bytes of a warp that go through shared memory."""
        name = self.opcode.split(".")[0]
        if name == "LDSM":
            return LANES * 4 * (int(self.opcode[-1]) if self.opcode[-1] in "24" else 1)
        return LANES * self.bytes if name in ("LDS", "STS", "LDGSTS") else 0


def instructions(listing: str) -> list[Instruction]:
    """The instructions of a kernel in a listing of `cuobjdump -sass`."""
    found = (Instruction(int(a, 16), name, rest) for a, name, rest in INSTRUCTION.findall(listing))
    return [instruction for instruction in found if instruction.opcode != "NOP"]


def loops(code: Sequence[Instruction]) -> Iterator[list[Instruction]]:
    """Bodies of loops: from the target of a branch back to the branch."""
    for branch in code:
        target = re.search(r"0x([0-9a-f]+)", branch.operands) if branch.opcode.startswith("BRA") else None
        if target is not None and (start := int(target[1], 16)) < branch.address:
            yield [one for one in code if start <= one.address <= branch.address]


def main_loop(code: Sequence[Instruction]) -> list[Instruction] | None:
    """The shortest loop with tensor core instructions, the one over keys; None in kernels without one."""
    bodies = [body for body in loops(code) if any(one.is_tensor for one in body)]
    return min(bodies, key=len, default=None)


def cycles(body: Sequence[Instruction], warps: int, gpu: Gpu) -> dict[str, float]:
    """Clocks that the pipes of a multiprocessor take for one step of one program."""
    special = sum(one.opcode.startswith("MUFU") for one in body)
    return {
        "issue": len(body) * warps / SCHEDULERS,
        "tensor cores": sum(one.products for one in body) * warps / gpu.products,
        "exp2": special * warps * LANES / SPECIAL_LANES,
        "shared memory": sum(one.shared_bytes for one in body) * warps / SHARED_BYTES,
    }


def programs(registers: int, shared: int, warps: int, gpu: Gpu) -> int:
    """Programs that a multiprocessor holds; registers are given to warps in units of 256."""
    per_warp = -(-registers * LANES // 256) * 256
    return min(
        REGISTERS // (per_warp * warps), gpu.shared * 1024 // (shared + 1024), WARPS // warps, PROGRAMS
    )


def constants(kernel: Any) -> dict[str, Any]:
    """The compile-time constants of a compiled kernel, by name."""
    names = kernel.src.fn.arg_names
    return {names[path[0]]: value for path, value in kernel.src.constants.items() if len(path) == 1}


def listing(cubin: bytes) -> str:
    """The assembly of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def rows_of(call: str, kernel: Any, capability: int) -> Iterator[dict[str, Any]]:
    """What a kernel uses, and its bound on every GPU of the architecture."""
    metadata, used, fixed = kernel.metadata, usage(kernel.asm["cubin"]), constants(kernel)
    body, keys = main_loop(instructions(listing(kernel.asm["cubin"]))), fixed.get("BLOCK_N")
    row: dict[str, Any] = {"architecture": f"sm_{capability}", "call": call, "kernel": metadata.name}
    row |= {"registers": used["reg"], "shared": metadata.shared, "stack": used["stack"] + used["local"]}
    row["warps"] = metadata.num_warps
    row["programs"] = programs(used["reg"], metadata.shared, metadata.num_warps, GPUS[capability][0])
    if body is None or keys is None:
        yield row
        return
    copied = sum(one.bytes for one in body if one.opcode.startswith("LDGSTS")) * LANES * metadata.num_warps
    row |= {"rows": fixed["BLOCK_M"], "keys": keys}
    row["instructions_per_key"] = round(len(body) * metadata.num_warps / keys, 1)
    row["bytes_per_key"] = copied / keys
    # Copies of the steps ahead; a step's own have arrived.
    row["bytes_in_flight"] = row["programs"] * (metadata.num_stages - 1) * copied
    if not call.startswith("decode"):
        yield row
        return
    cache = keys * (fixed["HEAD_DIM"] + fixed["VALUE_DIM"]) * BYTES
    for gpu in GPUS[capability]:
        taken = cycles(body, metadata.num_warps, gpu)
        limit = max(taken, key=lambda name: taken[name])
        rate = cache / taken[limit] * gpu.clock * gpu.processors
        bound = {"gpu": gpu.name, "limit": limit, "times_bandwidth": round(rate / gpu.bandwidth, 2)}
        yield row | bound | {"cycles": {name: round(count, 1) for name, count in taken.items()}}


def calls(names: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
    """Calls by short names: those of a 7B model with grouped heads, in bfloat16."""
    labels = {
        f"decode Lq=1 D=128 bfloat16: {edit}": f"decode bfloat16: {edit}"
        for edit in ("plain", "record", "bias", "var", "var, record", "gift")
    }
    labels |= {"prefill D=128 bfloat16 bool: var, record": "prefill bfloat16, mask: var, record"}
    for label, run in (*decode_calls(), *prefill_calls()):
        name = labels.get(label)
        if name is not None and (names is None or name in names):
            yield name, run


def report(architectures: Sequence[int], names: Sequence[str] | None) -> dict[str, Any]:
    """Rows of every kernel of these calls, each kernel of a call once."""
    rows: list[dict[str, Any]] = []
    for capability in architectures:
        stand_for(capability)
        for name, run in calls(names):
            known = []
            for kernel in launched(capability, run):
                if kernel.hash not in known:
                    known.append(kernel.hash)
                    rows += rows_of(name, kernel, capability)
    gpus = [gpu._asdict() for capability in architectures for gpu in GPUS[capability]]
    return {"triton": triton.__version__, "gpus": gpus, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architectures", nargs="+", type=int, choices=GPUS, default=list(GPUS))
    parser.add_argument("--calls", nargs="+", metavar="NAME", help="only these calls")
    parser.add_argument("--output", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = report(options.architectures, options.calls)
    columns = ("call", "kernel", "architecture", "registers", "shared", "stack", "programs")
    columns += ("instructions_per_key", "bytes_per_key", "gpu", "limit", "times_bandwidth")
    table = Table(*columns)
    for row in found["rows"]:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console(width=180).print(table)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
