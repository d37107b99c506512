"""The tuning table: rules are found, all of them can be taken, and the search for better ones works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from paths import ROOT, SUPPORT

pytest.importorskip("triton")

from regaze.kernels import AttentionEdit, StatsRequest, attend
from regaze.kernels.triton import tiling, tuning
from regaze.kernels.triton.tuning import Rule

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken
BENCHMARKS = ROOT / "benchmarks"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
WIDE = {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2}


def environment(**changes: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return known | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, SUPPORT)))} | changes


def outputs(programs: int) -> tuple[torch.Tensor, int]:
    """A decode step under a rule of `programs` per multiprocessor, and its number of splits."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16, generator=g) for n in (1, 300, 300))
    edit = AttentionEdit(stats=StatsRequest(entropy=True))
    out, _ = attend(q, k, v, edit, backend="triton")
    (plan,) = edit.backend_cache["triton plans"].values()
    return out, plan.shape.splits


@pytest.fixture
def table(monkeypatch):
    """Sets the table in use."""

    def set_table(**architectures):
        default = {phase: tuning.TABLE["default"][phase][-1:] for phase in ("decode", "prefill")}
        monkeypatch.setattr(tuning, "TABLE", {"default": default} | architectures)
        tiling.tiling.cache_clear(), tiling.decode_tiling.cache_clear()

    yield set_table
    monkeypatch.undo()
    tiling.tiling.cache_clear(), tiling.decode_tiling.cache_clear()


def test_a_rule_covers_sizes_up_to_its_own_and_equal_flags():
    rule = Rule({"width": 128, "rows": 16, "masked": False}, WIDE)
    assert rule.covers({"width": 128, "rows": 1, "masked": False, "light": True})
    assert not rule.covers({"width": 256, "rows": 1, "masked": False, "light": True})
    assert not rule.covers({"width": 64, "rows": 16, "masked": True, "light": True})


def test_rules_of_an_architecture_come_first_and_others_take_the_default(table):
    mine = Rule({"width": 64, "light": True}, WIDE)
    table(sm_77={"prefill": [mine]})
    facts = {"element_size": 2, "rows": 99, "masked": False, "columns": False}
    default = tuning.TABLE["default"]["prefill"][-1].take
    assert tuning.cut("sm_77", "prefill", width=64, light=True, **facts) == WIDE != default
    assert tuning.cut("sm_77", "prefill", width=64, light=False, **facts) == default
    assert tuning.cut("sm_78", "prefill", width=64, light=True, **facts) == default
    assert tiling.tiling(99, 64, 2, "sm_77", light=True) == tiling.Tiling(**WIDE)
    assert tiling.tiling(9, 64, 2, "sm_77", light=True).block_m == 16  # few rows never fill a large tile


def test_calls_are_cut_as_the_table_says_and_come_to_the_same(table):
    found = []
    for programs, block_n in ((1, 32), (2, 16)):
        take = {"block_m": 16, "block_n": block_n, "num_warps": 4, "num_stages": 2, "programs": programs}
        table(interpreter={"decode": [Rule({"recorded": True}, take)]})
        found.append(outputs(programs))
    assert [splits for _, splits in found] == [2, 4]  # the interpreter has 4 multiprocessors, and 2 key heads
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-6)


def test_a_table_is_written_as_it_was_read(tmp_path, tune):
    tune.write(tuning.read(), tmp_path / "tuning.json")
    assert (tmp_path / "tuning.json").read_bytes() == tuning.FILE.read_bytes()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "interpreter", "unknown"])
def test_every_rule_can_be_taken_and_every_call_finds_one(architecture, monkeypatch):
    monkeypatch.syspath_prepend(str(SUPPORT))
    from tuned_launches import FACTS, facts_of

    for phase in FACTS:
        own = tuning.TABLE.get(architecture, {}).get(phase, [])
        assert all(facts_of(rule, architecture, phase) for rule in own)
        assert all(facts_of(rule, "unknown", phase) for rule in tuning.TABLE["default"][phase])
        assert tuning.TABLE["default"][phase][-1].when == {}


@pytest.fixture(scope="module")
def tuned() -> list[dict[str, Any]]:
    """What the kernels of all rules use; of one process, as importing torch and Triton takes seconds."""
    capabilities = [architecture.removeprefix("sm_") for architecture in ARCHITECTURES]
    command = [sys.executable, str(SUPPORT / "tuned_launches.py"), *capabilities]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_rule_compiles_fits_and_spills_next_to_nothing(tuned, architecture):
    capability = int(architecture.removeprefix("sm_"))
    kernels = [kernel for kernel in tuned if kernel["capability"] == capability]
    assert {"split_kernel", "attend_kernel", "row_stats_kernel"} <= {k["kernel"] for k in kernels}
    # 8.0 has more shared memory, but 8.6 and 8.9 take the same rules with 99 KiB.
    assert all(k["shared"] <= (99 if capability == 80 else 227) * 1024 for k in kernels)
    spilled = [k for k in kernels if k["stack"] + k["local"] > 32]
    assert not spilled, "\n".join(map(str, spilled))


# --- the search


class FakeTimer:
    """Takes the time that a rule is given by a formula, instead of running anything."""

    def __init__(self, seconds):
        self.seconds = seconds

    def prepare(self, call):
        take = call()
        if take["block_n"] == 128:
            raise RuntimeError("out of resource: shared memory")
        return take

    def __call__(self, take):
        return self.seconds(take)


@pytest.fixture
def tune(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tune

    return tune


def asking(rows=7, **flags):
    """Makes calls that ask how a decode step is cut, and do no more."""
    facts = {"width": 64, "element_size": 2, "channels": 1, "rows": rows} | flags
    return lambda: lambda: tiling.cut("sm_77", "decode", **facts)


def test_the_search_finds_the_fastest_rule_and_leaves_slow_changes_out(tune):
    def seconds(take):
        return (
            1 + abs(take["block_n"] - 32) / 32 + 0.1 * abs(take["num_warps"] - 8) + 0.001 * take["programs"]
        )

    plain = {"edited": False, "recorded": False}
    lines = []
    calls = [asking(**plain), asking(rows=9, **plain)]
    found = tune.tuned(tuning.read(), calls, FakeTimer(seconds), lines.append)
    (rule,) = found["sm_77"]["decode"]
    before = asking(**plain)()()
    assert rule.when == {"width": 64, "element_size": 2, "channels": 1, "rows": 16} | plain
    # The number of programs matters less than the margin, and what does not fit is passed over.
    assert rule.take == before | {"block_n": 32, "num_warps": 8}
    assert "2 calls, now block_m=16 block_n=64" in lines[0]
    assert any("block_n=128" in line and line.endswith("RuntimeError") for line in lines)
    assert any("block_n=16 num_warps=4" in line and "0.792 of" in line for line in lines)
    assert f"takes {1.002 / 2.402:.3f} of the time of block_m=16 block_n=64" in lines[-1]
    assert {name: found[name] for name in tuning.TABLE} == tuning.TABLE


def test_the_search_leaves_a_table_alone_that_it_cannot_better(tune):
    lines = []
    found = tune.tuned(
        tuning.read(), [asking(edited=True, recorded=True)], FakeTimer(lambda _: 1.0), lines.append
    )
    assert found == tuning.TABLE
    assert len(lines) > 10


def test_rules_found_for_narrow_calls_come_before_those_for_wide_ones(tune):
    table = tuning.read()
    for width, rows in ((128, 64), (64, 16), (128, 16)):
        rule = Rule({"width": width, "rows": rows, "edited": True}, {})
        table = tune.with_rule(table, "sm_77", "decode", rule)
    again = tune.with_rule(table, "sm_77", "decode", Rule(rule.when, {"block_n": 16}))
    sizes = [tuple(rule.when.values())[:2] for rule in again["sm_77"]["decode"]]
    assert sizes == [(64, 16), (128, 16), (128, 64)]
    assert again["sm_77"]["decode"][1].take == {"block_n": 16}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune for")
def test_without_a_gpu_tuning_says_so_in_a_line():
    command = [sys.executable, str(BENCHMARKS / "attention.py"), "--tune"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "--tune times kernels on a GPU, and torch finds none here\n"
