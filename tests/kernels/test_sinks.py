"""The sink of an edit: a logit of each row in the denominator, as a share that is left to the keys."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from kernel_cases import moved, random_like

from regaze.interventions.common.move_mass import MoveMass
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import AttentionEdit, Channels, RowSelection, StatsRequest, attend, compose

BACKENDS = ["reference", "torch"] + ["triton"] * (find_spec("triton") is not None)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in branches not taken
ALL = StatsRequest(entropy=True, top1=True, lse=True, full_rows=True)


def call(backend, q, k, v, edit, **options):
    there = [moved(each, DEVICE) for each in (q, k, v, edit)]
    out, stats = attend(*there, backend=backend, **{name: moved(x, DEVICE) for name, x in options.items()})
    return out.cpu(), None if stats is None else type(stats)(*(x if x is None else x.cpu() for x in stats))


def tensors(queries: int, keys: int = 13, dtype=torch.float32, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    q, k, v = random_like(g, 2, 6, queries, 16), *(random_like(g, 2, 2, keys, 16) for _ in range(2))
    return [x.to(dtype) for x in (q, k, v)], g


@pytest.mark.parametrize("backend", BACKENDS)
def test_registers_by_hand(backend):
    """FarSight's example, sigma 0.8: row i has a register for each row after it."""
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.5, 0.0], [0.2, -1.0, 0.7]])
    q, k, v = torch.zeros(1, 1, 3, 16), torch.zeros(1, 1, 3, 16), torch.eye(3)[None, None]
    visible = torch.ones(3, 3, dtype=torch.bool).tril()
    mask = scores.masked_fill(~visible, -torch.inf)[None, None]
    sink = torch.tensor([[[-0.428899, -0.8, -torch.inf]]])
    out, _ = call(backend, q, k, v, AttentionEdit(sink=sink), mask=mask)
    want = [[0.806730, 0.0, 0.0], [0.250575, 0.681135, 0.0], [0.338993, 0.102103, 0.558905]]
    torch.testing.assert_close(out[0, 0], torch.tensor(want), rtol=0, atol=2e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sink_is_a_factor_of_each_row(backend, queries, masked):
    """Z / (Z + e^sink) of the plain output; plain statistics do not see it, those of edited rows do."""
    (q, k, v), g = tensors(queries)
    sink = random_like(g, 2, 6, queries, scale=2.0)
    mask = torch.rand(2, 1, queries, 13, generator=g) > 0.3 if masked else None
    options = {"mask": mask, "is_causal": True}
    plain, stats = call(backend, q, k, v, AttentionEdit(stats=ALL), **options)
    share = torch.sigmoid(stats.lse - sink)
    for edited in (False, True):
        request = StatsRequest(entropy=True, lse=True, full_rows=True, edited=edited)
        out, found = call(backend, q, k, v, AttentionEdit(sink=sink, stats=request), **options)
        torch.testing.assert_close(out, plain * share[..., None], rtol=1e-5, atol=1e-6)
        factor = share if edited else torch.ones_like(share)
        torch.testing.assert_close(found.slices, stats.slices * factor[..., None], rtol=1e-5, atol=1e-6)
        lse = torch.logaddexp(stats.lse, sink) if edited else stats.lse
        torch.testing.assert_close(found.lse, lse, rtol=1e-5, atol=1e-5)
        entropy = torch.special.entr(found.slices).sum(-1)
        torch.testing.assert_close(found.entropy, entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["causal", "mask", "model sinks", "many keys"])
@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_no_sink_changes_no_bit(backend, queries, kind, dtype):
    (q, k, v), g = tensors(queries, 4099 if kind == "many keys" else 13, dtype)
    options = {"is_causal": True}
    if kind == "mask":
        options["mask"] = torch.rand(2, 1, queries, 13, generator=g) > 0.3
    if kind == "model sinks":
        options["sinks"] = random_like(g, 6)
    none = torch.full((1, 6, queries), -torch.inf)
    got, want = (call(backend, q, k, v, AttentionEdit(sink=sink), **options)[0] for sink in (none, None))
    assert torch.equal(got, want)


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs Triton")
@pytest.mark.parametrize("queries", [1, 9])
def test_no_sink_changes_no_bit_in_the_kernels(queries):
    (q, k, v), g = tensors(queries)
    mask = torch.rand(2, 1, queries, 13, generator=g) > 0.3
    mask[0, :, 0] = False
    none = torch.full((1, 6, queries), -torch.inf)
    for sinks in (None, random_like(g, 6)):
        edits = [AttentionEdit(sink=sink, stats=ALL) for sink in (none, None)]
        (got, stats), (want, wanted) = (call("triton", q, k, v, e, mask=mask, sinks=sinks) for e in edits)
        assert torch.equal(got, want)
        assert all(torch.equal(a, b) for a, b in zip(stats, wanted, strict=True) if a is not None)


@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sinks_stand_side_by_side(backend, queries):
    """Those of two edits and of the model: ln(e^a + e^b + e^c) in one denominator."""
    (q, k, v), g = tensors(queries)
    a, b = random_like(g, 1, 6, queries), random_like(g, 2, 1, queries)
    a[..., 0] = -torch.inf
    sinks = random_like(g, 6)
    both = compose([AttentionEdit(sink=a), AttentionEdit(sink=b)])
    out, _ = call(backend, q, k, v, both, is_causal=True, sinks=sinks)
    logits = torch.stack([x.expand(2, 6, queries) for x in (a, b, sinks[:, None])]).logsumexp(0)
    want, _ = call("reference", q, k, v, AttentionEdit(sink=logits), is_causal=True)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["inside", "over heads", "in torch"])
@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_policies_get_the_masses_that_a_sink_leaves(backend, queries, policy):
    """A threshold on them, ranks of heads, and a policy without parts; on some rows, the sink on all."""
    (q, k, v), g = tensors(queries)
    groups = torch.randint(0, 3, (2, 13), generator=g, dtype=torch.uint8)
    channels = Channels(groups, 3, torch.rand(1, 2, 13, generator=g) * (groups == 1))

    class Powers:
        channels = 4

        def __call__(self, masses):
            return 1.0 + masses

    policies = {
        "inside": MoveMass(4, (1,), (2,), (1, 2), 0.6, 0.3, 0.2071),
        "over heads": AmplifyTopHeads(4, 1, 2, 3, heads=2),
        "in torch": Powers(),
    }
    rows = RowSelection.where(torch.arange(queries)[None].expand(2, -1) % 2 == 0)
    sink = random_like(g, 2, 6, queries)
    request = StatsRequest(channels=channels, lse=True, edited=queries == 9)
    edit = AttentionEdit(rows, sink=sink, channels=channels, policy=policies[policy], stats=request)
    options = {"is_causal": True, "sinks": random_like(g, 6)}
    (out, stats), (want, wanted) = (call(name, q, k, v, edit, **options) for name in (backend, "reference"))
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    for name in ("masses", "lse"):
        torch.testing.assert_close(getattr(stats, name), getattr(wanted, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", [0, 5])
def test_rows_without_keys_report_the_sinks_alone(keys):
    q, k, v = torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, keys, 8), torch.zeros(1, 2, keys, 8)
    sink, hidden = torch.tensor([[[0.5, -torch.inf]]]), torch.zeros(1, 1, 2, keys, dtype=torch.bool)
    for backend in BACKENDS:
        edit = AttentionEdit(sink=sink, stats=StatsRequest(lse=True, edited=True))
        out, stats = call(backend, q, k, v, edit, mask=hidden)
        assert not out.any()
        assert stats.lse[0, 1].tolist() == [0.5, -torch.inf]


@pytest.mark.parametrize("queries", [1, 4])
def test_a_learned_sink_has_gradients(queries):
    q, k, v = (torch.randn(1, 2, n, 3).double().requires_grad_() for n in (queries, 5, 5))
    sink = torch.randn(1, 2, queries).double().requires_grad_()

    def run(q, k, v, sink):
        return attend(q, k, v, AttentionEdit(sink=sink), is_causal=True, backend="torch")[0]

    assert torch.autograd.gradcheck(run, (q, k, v, sink))
