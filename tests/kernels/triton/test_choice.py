"""Which calls the Triton backend takes, what it says of others, and that nothing else needs Triton."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from regaze.errors import BadParameterError
from regaze.kernels import BACKENDS, AttentionEdit, ScoreGate, UnmaskRect, attend

pytest.importorskip("triton")

from regaze.kernels.triton import launch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken


def call(*args, **kw):
    return attend(*args, backend="triton", **kw)


def small(dtype=torch.float32, dim=16):
    return [torch.randn(1, 2, n, dim, dtype=dtype) for n in (1, 5, 5)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: small(torch.float64), "must all be float16, bfloat16 or float32, got float64"),
        (lambda: [small()[0], *small(torch.bfloat16)[1:]], "got bfloat16, float32"),
        (lambda: small(dim=320), "head dimensions go up to 256, got D=320 and Dv=320"),
        (lambda: [x.requires_grad_() for x in small()], "it has no gradients"),
        (lambda: [x.to("meta") for x in small()], "its kernels run on a GPU, and query is on meta"),
    ],
)
def test_an_impossible_call_says_why_and_what_to_do(make, said):
    with pytest.raises(BadParameterError, match=said) as error:
        call(*make())
    assert "backend=" in str(error.value)


def test_an_edit_that_is_learned_or_has_too_many_openings_is_refused():
    learned = AttentionEdit(bias=torch.zeros(1, 1, 5, requires_grad=True))
    with pytest.raises(BadParameterError, match="no gradients"):
        call(*small(), learned)
    with torch.no_grad():
        call(*small(), learned)
    opening = UnmaskRect(torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(BadParameterError, match="63 unmasked rectangles, got 64"):
        call(*small(), AttentionEdit(unmask=(opening,) * 64))


def test_auto_takes_torch_without_a_gpu_and_the_environment_decides(monkeypatch):
    q, k, v = small()
    ran = []
    monkeypatch.setattr(
        launch, "attend_triton", lambda *a, **kw: ran.append("triton") or attend(q, k, v, backend="torch")
    )
    monkeypatch.delenv("REGAZE_BACKEND", raising=False)
    attend(q, k, v)
    assert not ran
    monkeypatch.setenv("REGAZE_BACKEND", "triton")
    attend(q, k, v)
    assert ran == ["triton"]
    attend(q, k, v, backend="torch")
    assert ran == ["triton"]
    with pytest.raises(BadParameterError, match="float64"):
        attend(*small(torch.float64))


@pytest.mark.parametrize("queries", [1, 12])
@pytest.mark.parametrize("part", ["head_mean_slope", "spread", "score_gate"])
def test_parts_without_a_kernel_are_done_in_torch(part, queries):
    """Alone, with the torch backend's bits, or beside the kernels."""
    g = torch.Generator().manual_seed(queries)
    q, k, v = (torch.randn(2, heads, n, 16, generator=g) for heads, n in ((6, queries), (2, 12), (2, 12)))
    named = torch.rand(2, 9, generator=g) > 0.5
    edit = {
        "head_mean_slope": AttentionEdit(head_mean_slope=0.5 * named[:, None].float()),
        "spread": AttentionEdit(spread=named, bias=torch.randn(2, 6, 9, generator=g)),
        "score_gate": AttentionEdit(score_gate=ScoreGate(named, kept=2, factor=0.3)),
    }[part]
    out = call(q, k, v, edit, is_causal=True)[0]
    assert torch.equal(out, attend(q, k, v, edit, is_causal=True, backend="torch")[0]) or part == "score_gate"
    want = attend(q, k, v, edit, is_causal=True, backend="reference")[0]
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, call(q, k, v, is_causal=True)[0], atol=1e-2)


def run_python(code: str, **env: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | env
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


CALL = "import torch; from regaze.kernels import attend; x = torch.randn(1, 1, 1, 16)\n"


@pytest.mark.slow
def test_importing_regaze_loads_no_kernel_and_the_cpu_is_refused_without_the_interpreter():
    code = CALL + "attend(x, x, x)\nimport sys; print('regaze.kernels.triton' in sys.modules)\n"
    code += "try: attend(x, x, x, backend='triton')\nexcept ValueError as error: print(error)"
    loaded, said = run_python(code).splitlines()
    assert loaded == "False"
    assert "query is on cpu" in said
    assert "TRITON_INTERPRET=1" in said


@pytest.mark.slow
def test_everything_else_works_without_triton():
    code = "import sys, importlib.util as u; find = u.find_spec\n"
    code += "u.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n" + CALL
    code += "from regaze.kernels import BACKENDS; print(attend(x, x, x)[0].shape, sorted(BACKENDS))\n"
    code += "try: attend(x, x, x, backend='triton')\nexcept ValueError as error: print(error)"
    worked, said = run_python(code).splitlines()
    others = sorted({*BACKENDS} - {"triton"})
    assert worked == f"torch.Size([1, 1, 1, 16]) {others}"
    assert "Triton is not installed; pip install 'regaze[triton]'" in said
