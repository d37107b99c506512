"""benchmarks/sass.py: loops are found in listings, counts are right, and committed rows are what it finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT, SUPPORT

triton = pytest.importorskip("triton")

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
RESULTS = ROOT / "benchmarks" / "results" / "sass.json"

LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;     /* 0x1 */
                                                              /* 0x2 */
        /*0010*/                   HMMA.16816.F32.BF16 R80, R72.reuse, R76, RZ ;
        /*0020*/                   LDSM.16.MT88.4 R4, [R2] ;
        /*0030*/               @P1 LDGSTS.E.BYPASS.128 [R31+0x800], desc[UR10][R24.64], P5 ;
        /*0040*/                   MUFU.EX2 R60, R68 ;
        /*0050*/                   NOP ;
        /*0060*/                   LDG.E.U8 R4, [R2.64] ;
        /*0070*/              @!P0 BRA 0x10 ;
        /*0080*/                   MUFU.RCP R5, R5 ;
        /*0090*/              @!UP2 BRA 0x80 ;
        /*00a0*/               @P0 BRA 0x0 ;
        /*00b0*/                   EXIT ;
        /*00c0*/                   BRA 0xc0;
"""


@pytest.fixture
def sass(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(SUPPORT))
    import sass

    return sass


def test_the_main_loop_is_the_shortest_with_tensor_instructions(sass):
    code = sass.instructions(LISTING)
    assert [len(body) for body in sass.loops(code)] == [6, 2, 10]
    body = sass.main_loop(code)
    assert [one.opcode.split(".")[0] for one in body] == ["HMMA", "LDSM", "LDGSTS", "MUFU", "LDG", "BRA"]
    assert sass.main_loop(code[-5:]) is None


def test_pipes_take_what_their_rates_say(sass):
    body = sass.main_loop(sass.instructions(LISTING))
    assert [one.bytes for one in body][2:5:2] == [16, 1]
    h100 = sass.GPUS[90][0]
    assert sass.cycles(body, 4, h100) == {
        "issue": 6.0,
        "tensor cores": 4 * 16 * 8 * 16 / 2048,
        "exp2": 4 * 32 / 16,
        "shared memory": 4 * (512 + 512) / 128,
    }
    wgmma = sass.Instruction(0, "HGMMA.64x96x16.F32.BF16", "")
    assert wgmma.products == 16 * 96 * 16


def test_programs_of_a_multiprocessor(sass):
    h100 = sass.GPUS[90][0]
    assert sass.programs(255, 1024, 8, h100) == 1  # registers
    assert sass.programs(40, 71680, 4, h100) == 3  # shared memory
    assert sass.programs(16, 0, 8, h100) == 8  # warps
    assert sass.programs(16, 0, 1, h100) == 32


def test_committed_bounds_follow_from_committed_counts(sass):
    found = json.loads(RESULTS.read_text())
    gpus = {gpu["name"]: gpu for gpu in found["gpus"]}
    bounded = [row for row in found["rows"] if "gpu" in row]
    assert {row["gpu"] for row in bounded} == {gpu.name for each in sass.GPUS.values() for gpu in each}
    for row in bounded:
        gpu = gpus[row["gpu"]]
        step = row["cycles"][row["limit"]]
        assert step == max(row["cycles"].values())
        issued = row["instructions_per_key"] * row["keys"] / 4
        assert row["cycles"]["issue"] == pytest.approx(issued, rel=1e-2)
        cache = 2 * 128 * 2  # K and V of a head
        read = gpu["processors"] * gpu["clock"] * row["keys"] * cache / step
        assert row["times_bandwidth"] == pytest.approx(read / gpu["bandwidth"], rel=2e-2)
        columns = row["call"].endswith(("bias", "gift"))  # copied beside K and V, each of which is read once
        assert (row["bytes_per_key"] > cache) if columns else (row["bytes_per_key"] == cache)


@pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this build of Triton has no cuobjdump")
def test_a_kernel_compiled_now_is_much_as_committed(tmp_path):
    committed = json.loads(RESULTS.read_text())
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, SUPPORT)))
    command = [sys.executable, str(ROOT / "benchmarks" / "sass.py"), "--architectures", "90"]
    command += ["--calls", "decode bfloat16: plain", "--output", str(tmp_path / "sass.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "sass.json").read_text())
    split = found["rows"][0]
    assert split["kernel"] == "split_kernel"
    assert split["bytes_per_key"] == 512
    assert split["stack"] == 0
    assert 0 < split["instructions_per_key"] < 40
    known = next(
        row
        for row in committed["rows"]
        if (row["architecture"], row["call"], row["kernel"]) == ("sm_90", split["call"], "split_kernel")
    )
    if found["triton"] == committed["triton"]:  # else its compiler has changed, too
        assert split["instructions_per_key"] == pytest.approx(known["instructions_per_key"], rel=0.1)
        assert split["bytes_per_key"] == known["bytes_per_key"]
