"""Shared by the kernel tests: edited attention in plain loops, low-precision eager, and random cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from regaze.interventions.common.move_mass import MoveMass
from regaze.kernels import (
    AttentionEdit,
    Channels,
    HeadSource,
    Outstanding,
    Placeable,
    RowSelection,
    Scale,
    Stats,
    StatsRequest,
    UnmaskRect,
    attend,
)
from regaze.kernels.borrow import exchanged, exchanged_mask
from regaze.kernels.reference import edit_scores, row_mask, spread_out, visibility

# Busy cores are no reason to fail.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
QUICK = settings(max_examples=40, **_PATIENT)
THOROUGH = settings(max_examples=200, **_PATIENT)

PolicyFn = Callable[[list[float]], list[float]]


def naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edit: AttentionEdit,
    *,
    mask=None,
    is_causal=False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    policy: PolicyFn | None = None,
) -> tuple[Tensor, Tensor]:
    """Output [B, Hq, Lq, Dv] and final weights [B, Hq, Lq, Lk], one key at a time in Python floats."""
    batch, heads, queries, dim = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros(batch, heads, queries, v.shape[3], dtype=torch.float64)
    rows = torch.zeros(batch, heads, queries, keys, dtype=torch.float64)

    def at(tensor: Tensor | None, b: int, h: int, j: int, neutral: float) -> float:
        if tensor is None or j >= tensor.shape[2]:
            return neutral
        return float(tensor[b % tensor.shape[0], h % tensor.shape[1], j])

    def source(b: int, h: int) -> int:
        index = None if edit.head_source is None else edit.head_source.index
        return h if index is None else int(index[b % len(index), h])

    def chosen(b: int, i: int) -> bool:
        if edit.rows is None:
            return True
        hits = [r for r, row in enumerate(edit.rows.index.tolist()) if row == i]
        return any(edit.rows.active is None or bool(edit.rows.active[b, r]) for r in hits)

    def looks(b: int, h: int, i: int, j: int) -> tuple[bool, float]:
        """Whether row i may see key j, and what the mask adds."""
        for opening in edit.unmask:
            in_rows = bool(opening.rows[b % len(opening.rows), i])
            in_columns = j < opening.columns.shape[1] and bool(opening.columns[b % len(opening.columns), j])
            if in_rows and in_columns:
                added = 0.0 if mask is None or mask.dtype == torch.bool else added_by_mask(b, h, i, j)[1]
                return True, added
        return added_by_mask(b, h, i, j)

    def added_by_mask(b: int, h: int, i: int, j: int) -> tuple[bool, float]:
        if mask is None:
            return (not is_causal or j <= i + keys - queries), 0.0
        value = mask[b % mask.shape[0], source(b, h) % mask.shape[1], i, j]
        if mask.dtype == torch.bool:
            return bool(value), 0.0
        if float(value) <= torch.finfo(mask.dtype).min / 2:
            return False, 0.0
        return True, float(value)

    def score(b: int, h: int, i: int, j: int) -> float:
        s = float(q[b, source(b, h), i] @ k[b, source(b, h) // group, j]) * dim**-0.5
        return s if softcap is None else softcap * math.tanh(s / softcap)

    def sloped(b: int, h: int, i: int, j: int) -> float:
        s = score(b, h, i, j) + looks(b, h, i, j)[1]
        return s + at(edit.score_slope, b, h, j, 0.0) * abs(s)

    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                own = [] if sinks is None else [float(sinks[h])]
                added_sinks = [] if edit.sink is None else [at(edit.sink, b, h, i, 0.0)]
                seen = [(j, added) for j in range(keys) for ok, added in [looks(b, h, i, j)] if ok]
                scores = {j: score(b, h, i, j) + added for j, added in seen}
                plain = _softmax(scores, own)
                selected = chosen(b, i)
                if selected:
                    for j in scores:
                        s = sloped(b, h, i, j)
                        mean = sum(abs(sloped(b, other, i, j)) for other in range(heads)) / heads
                        s = s + at(edit.head_mean_slope, b, h, j, 0.0) * mean
                        s = s * at(edit.score_gain, b, h, j, 1.0)
                        if edit.head_score_gain is not None:
                            s = s * float(edit.head_score_gain[b % len(edit.head_score_gain), h])
                        scores[j] = s + at(edit.bias, b, h, j, 0.0)
                weights = _softmax(scores, own + added_sinks)
                if selected:
                    weights = _reweighed(weights, edit, b, h, at, policy)
                    weights = _spread(plain, weights, edit.spread, b)
                for j, a in weights.items():
                    rows[b, h, i, j] = a
                    out[b, h, i] += a * v[b, h // group, j]
                if edit.head_gain is not None:
                    gain = edit.head_gain[b % len(edit.head_gain), h]
                    out[b, h, i] *= float(gain if gain.dim() == 0 else gain[i])
    return out, rows


def _reweighed(weights, edit, b, h, at, policy):
    channels = edit.channels
    if channels is not None:
        u = {j: channel_weights(channels, b, j) for j in weights}
        if (out := channels.outstanding) is not None:
            mean = sum(weights.values()) / max(1, sum(a > 0 for a in weights.values()))
            for j, a in weights.items():
                if u[j][out.group] and a > out.above * mean:
                    u[j][out.group], u[j][out.into] = 0.0, 1.0
        masses = [sum(a * u[j][c] for j, a in weights.items()) for c in range(channels.count)]
        coefficients = policy(masses)
        factor = {j: sum(f * x for f, x in zip(coefficients, u[j], strict=True)) for j in weights}
        weights = {j: a * factor[j] for j, a in weights.items()}
    return {j: a * at(edit.value_gain, b, h, j, 1.0) for j, a in weights.items()}


def _softmax(scores: dict[int, float], sinks: list[float]) -> dict[int, float]:
    logits = [*scores.values(), *sinks]
    top = max(logits, default=-math.inf)
    if top == -math.inf:
        return {}
    total = sum(math.exp(s - top) for s in logits)
    return {j: math.exp(s - top) / total for j, s in scores.items()}


def _spread(plain, weights, spread: Tensor | None, b: int) -> dict[int, float]:
    if spread is None:
        return weights
    named = [j for j in weights if j < spread.shape[1] and bool(spread[b % len(spread), j])]
    for part in (named, [j for j in weights if j not in named]):
        held, given = (sum(w[j] for j in part) for w in (plain, weights))
        if held > 0:
            weights |= {j: plain[j] * given / held for j in part}
    return weights


def channel_weights(channels: Channels, b: int, j: int) -> list[float]:
    """u_k[j] for every channel k, from the tensors the user gave."""
    u = []
    if channels.groups is not None:
        groups = channels.groups
        group = int(groups[b % len(groups), j]) if j < groups.shape[1] else 0
        u += [float(group == g) for g in range(channels.num_groups)]
    if channels.weights is not None:
        named = channels.weights
        u += [float(w[b % len(w), j]) if j < named.shape[2] else 0.0 for w in named]
    return u


def naive_move_mass(policy: MoveMass) -> PolicyFn:
    def coefficients(masses: list[float]) -> list[float]:
        gate = sum(masses[c] for c in policy.gate)
        receiver = sum(masses[c] for c in policy.receivers)
        if gate < policy.min_mass or receiver < policy.min_share * gate or receiver <= 0:
            return [1.0] * len(masses)
        budget = policy.moved * sum(masses[c] for c in policy.donors)
        factors = [1.0] * len(masses)
        for c in policy.donors:
            factors[c] = 1 - policy.moved
        for c in policy.receivers:
            factors[c] = 1 + budget / receiver
        return factors

    return coefficients


def eager(q, k, v, edit, *, mask=None, is_causal=False, softcap=None, sinks=None) -> Tensor:
    """What eager code does in the dtype of q: products in that dtype, softmax and edits in fp32.

    In fp16 the products are fp32, too: scores, weights and outputs before a gain may leave its range.
    """
    group, keys, queries, dtype = q.shape[1] // k.shape[1], k.shape[2], q.shape[2], q.dtype
    if dtype == torch.float16:
        q, k, v = q.float(), k.float(), v.float()
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if edit.head_source is not None:
        q, k, v = exchanged(q, k, v, edit.head_source.index)
        mask = exchanged_mask(mask, edit.head_source.index)
    visible, additive = visibility(mask, queries, keys, is_causal, edit.unmask, q.device, edit.windows)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = (scores if softcap is None else torch.tanh(scores / softcap) * softcap).float()
    scores = scores if additive is None else scores + additive.float()
    selected = row_mask(edit.rows, q.shape[0], queries, q.device)

    own = [] if sinks is None else [sinks.float()[:, None, None]]
    both = own if edit.sink is None else [*own, edit.sink.float()[..., None]]

    def softmax(scores: Tensor, sinks: list[Tensor]) -> Tensor:
        scores = scores.masked_fill(~visible, -torch.inf)
        scores = torch.cat([scores, *(x.expand(*scores.shape[:-1], 1) for x in sinks)], -1)
        return torch.softmax(scores, -1).nan_to_num(0.0)[..., :keys]

    mapped = torch.where(selected, edit_scores(scores, edit), scores)
    plain, weights = softmax(scores, own), softmax(mapped, both)
    final = weights
    if edit.channels is not None:
        final = final * edit.channels.per_key(edit.policy(edit.channels.masses(weights)), keys)
    if edit.value_gain is not None:
        final = final * edit.columns("value_gain", keys)[:, :, None]
    if edit.spread is not None:
        final = spread_out(plain, final, edit.columns("spread", keys))
    out = torch.where(selected, final, weights).to(v.dtype) @ v
    if edit.head_gain is not None:
        gain = edit.head_gain if edit.head_gain.dim() == 3 else edit.head_gain[..., None]
        out = out * gain[..., None].to(out.dtype)
    return out.to(dtype)


def within_budget(got: Tensor, exact: Tensor, eager_out: Tensor, scale: float) -> tuple[float, float]:
    """Largest error and what is allowed: twice that of eager, plus a few roundings of size `scale`."""
    error = (got.double() - exact).abs().max().item()
    budget = 2 * (eager_out.double() - exact).abs().max().item()
    return error, budget + 4 * torch.finfo(got.dtype).eps * scale


def random_like(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator) * scale


@dataclass
class Case:
    """A call of attend. `doubled()` gives it in fp64 with the very same numbers."""

    q: Tensor
    k: Tensor
    v: Tensor
    edit: AttentionEdit
    mask: Tensor | None
    is_causal: bool
    softcap: float | None = None
    sinks: Tensor | None = None

    def on(self, device: str) -> Case:
        """The same call on another device."""
        return Case(*(moved(getattr(self, f.name), device) for f in fields(self)))

    @property
    def options(self) -> dict[str, object]:
        """What every attention function takes by name."""
        return {
            "mask": self.mask,
            "is_causal": self.is_causal,
            "softcap": self.softcap,
            "sinks": self.sinks,
        }

    def call(self, attention, **kw):
        return attention(self.q, self.k, self.v, self.edit, **self.options, **kw)

    def doubled(self) -> Case:
        mask = self.mask
        if mask is not None and mask.dtype != torch.bool:
            hidden = mask <= torch.finfo(mask.dtype).min / 2
            mask = mask.double().masked_fill(hidden, -torch.inf)
        q, k, v = self.q.double(), self.k.double(), self.v.double()
        sinks = None if self.sinks is None else self.sinks.double()
        return Case(q, k, v, self.edit, mask, self.is_causal, self.softcap, sinks)

    @property
    def scale(self) -> float:
        """Size of the numbers that make up an output: |v| times the gains."""
        gains = [self.edit.head_gain, self.edit.value_gain]
        size = self.v.abs().max().item()
        for gain in gains:
            if gain is not None:
                size *= max(1.0, gain.abs().max().item())
        return size * (4.0 if self.edit.policy is not None else 1.0)


MASKS = ("none", "causal", "bool", "min", "inf", "soft", "per_head")
ROWS = ("all", "some", "per_sample", "every", "empty")
PARTS = (
    "slope",
    "gain",
    "head_score_gain",
    "bias",
    "remove",
    "sink",
    "move_mass",
    "scale",
    "value_gain",
    "head_gain",
    "source",
    "open",
)


def make_mask(kind: str, batch: int, heads: int, queries: int, keys: int, dtype, g) -> Tensor | None:
    """Causal with left padding (so that early rows are fully masked), and a random row that sees nothing."""
    if kind in ("none", "causal"):
        return None
    visible = (
        torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(batch, 1, -1, -1).clone()
    )
    padding = torch.randint(0, keys, (batch,), generator=g)
    visible &= (torch.arange(keys) >= padding[:, None])[:, None, None]
    if kind == "per_head":
        visible = visible & (torch.rand(batch, heads, queries, keys, generator=g) > 0.3)
    visible[torch.randint(0, batch, (), generator=g), :, torch.randint(0, queries, (), generator=g)] &= bool(
        torch.rand((), generator=g) > 0.5
    )
    if kind in ("bool", "per_head"):
        return visible
    added = torch.zeros(visible.shape) if kind != "soft" else torch.randn(visible.shape, generator=g)
    return added.to(dtype).masked_fill(~visible, -torch.inf if kind == "inf" else torch.finfo(dtype).min)


def make_rows(kind: str, batch: int, queries: int, g) -> RowSelection | None:
    if kind == "all":
        return None
    if kind == "every":
        return RowSelection(torch.arange(queries))
    if kind == "empty":
        return RowSelection(torch.empty(0, dtype=torch.int64))
    chosen = torch.rand(batch if kind == "per_sample" else 1, queries, generator=g) > 0.5
    return RowSelection.where(chosen.expand(batch, -1))


@st.composite
def cases(
    draw, parts: tuple[str, ...] = PARTS, dtypes=(torch.float32, torch.bfloat16), stats: bool = False
) -> Case:
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(dtypes))
    batch, kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    heads = kv_heads * draw(st.sampled_from((1, 3, 6, 7, 8)))
    keys = draw(st.sampled_from((1, 3, 7, 13, 31)))
    queries = draw(st.sampled_from((1, 1, 2, 5, 9)))
    dim = draw(st.sampled_from((4, 5, 16)))
    value_dim = draw(st.sampled_from((dim, 3)))
    kind = draw(st.sampled_from(MASKS))
    q = random_like(g, batch, heads, queries, dim, scale=2.0).to(dtype)
    k, v = (random_like(g, batch, kv_heads, keys, d, scale=2.0).to(dtype) for d in (dim, value_dim))
    named = draw(st.integers(1, keys))
    used = set(draw(st.lists(st.sampled_from(parts), max_size=4, unique=True)))
    exact = dtype == torch.float32
    edit = make_edit(
        used,
        batch,
        heads,
        queries,
        named,
        g,
        exact,
        make_rows(draw(st.sampled_from(ROWS)), batch, queries, g),
    )
    if stats:
        edit = edit.replace(stats=draw(requests(batch, queries, keys, g)))
    softcap = draw(st.sampled_from((None, None, 3.0)))
    sinks = random_like(g, heads, scale=2.0).to(dtype) if draw(st.integers(0, 2)) == 0 else None
    mask = make_mask(kind, batch, heads, queries, keys, dtype, g)
    return Case(q, k, v, edit, mask, kind == "causal", softcap, sinks)


def make_edit(
    used: set[str], batch, heads, queries, named, g, thresholds: bool, rows: RowSelection | None
) -> AttentionEdit:
    def columns(scale: float, centre: float = 0.0) -> Tensor:
        b, h = (int(size) if torch.rand((), generator=g) > 0.5 else 1 for size in (batch, heads))
        return centre + random_like(g, b, h, named, scale=scale)

    parts: dict[str, object] = {"rows": rows}
    if "slope" in used:
        parts["score_slope"] = columns(0.3)
    if "head_mean" in used:
        parts["head_mean_slope"] = columns(0.3)
    if "gain" in used:
        parts["score_gain"] = columns(0.3, 1.0)
    if "head_score_gain" in used:
        parts["head_score_gain"] = torch.randint(0, 3, (batch, heads), generator=g).float() / 2
    if "bias" in used or "remove" in used:
        bias = columns(1.0)
        parts["bias"] = bias.masked_fill(bias > 0.5, -torch.inf) if "remove" in used else bias
    if "sink" in used:
        b, h = (int(size) if torch.rand((), generator=g) > 0.5 else 1 for size in (batch, heads))
        none = torch.rand(b, h, queries, generator=g) > 0.7
        parts["sink"] = random_like(g, b, h, queries, scale=2.0).masked_fill(none, -torch.inf)
    if "move_mass" in used or "scale" in used:
        groups = torch.randint(0, 4, (batch, named), generator=g, dtype=torch.uint8)
        # No fraction of few keys: equal weights (a head whose scores are scaled by 0) would tie.
        share, mass = (0.4142, 0.2071) if thresholds else (0.0, 0.0)
        out = Outstanding(1, 2, 1.0317) if "outstanding" in used else None
        parts["channels"] = Channels(groups, 4, outstanding=out)
        parts["policy"] = MoveMass(4, (1, 2), (3,), (2, 3), 0.6, share, mass)
        if "scale" in used:
            parts["policy"] = Scale((1.0, 0.0, 2.0, 0.5), renormalise="move_mass" in used)
    if "value_gain" in used:
        parts["value_gain"] = columns(0.5, 1.0)
    if "spread" in used:
        parts["spread"] = torch.rand(batch if thresholds else 1, named, generator=g) > 0.5
    if "head_gain" in used:
        size = (batch, heads, queries) if torch.rand((), generator=g) > 0.5 else (1, heads)
        parts["head_gain"] = torch.randint(0, 3, size, generator=g).float() / 2
    if "source" in used:
        index = torch.randint(0, heads, (batch if thresholds else 1, heads), generator=g)
        parts["head_source"] = HeadSource(index)
    if "open" in used:
        opened = torch.rand(batch, queries, generator=g) > 0.5
        parts["unmask"] = (UnmaskRect(opened, torch.rand(batch, named, generator=g) > 0.5),)
    return AttentionEdit(**parts)


@st.composite
def requests(draw, batch: int, queries: int, keys: int, g) -> StatsRequest:
    groups = torch.randint(0, 3, (batch, keys), generator=g, dtype=torch.uint8)
    columns = torch.randint(-1, keys, (batch, 4), generator=g) if draw(st.booleans()) else None
    return StatsRequest(
        rows=make_rows(draw(st.sampled_from(ROWS)), batch, queries, g),
        channels=Channels(groups, 3, torch.rand(1, batch, keys, generator=g)),
        entropy=True,
        top1=True,
        lse=True,
        columns=columns,
        full_rows=columns is None and draw(st.booleans()),
        edited=draw(st.booleans()),
    )


def stats_dict(stats) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in stats._asdict().items() if tensor is not None}


def check_call(case: Case, backend: str, device: str = "cpu") -> None:
    """Output and statistics of a backend against the specification in fp64, within the error budget."""
    check_result(case, *case.on(device).call(attend, backend=backend))


def check_result(case: Case, out: Tensor, stats: Stats | None) -> None:
    """The output and the statistics of a case likewise."""
    there = case.on(str(out.device))
    exact, exact_stats = case.doubled().call(attend, backend="reference")
    assert out.dtype == case.q.dtype
    assert out.shape == exact.shape
    error, allowed = within_budget(out.cpu(), exact, there.call(eager).cpu(), case.scale)
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
    if case.edit.stats is not None:
        _, single = case.call(attend, backend="reference")
        got = {name: tensor.cpu() for name, tensor in stats_dict(stats).items()}
        check_stats(got, stats_dict(exact_stats), stats_dict(single), case)


def check_stats(got: dict, exact: dict, single: dict, case: Case) -> None:
    """Each within twice the error of the fp32 specification, and a few roundings, of the fp64 one."""
    assert got.keys() == exact.keys()
    for name, tensor in got.items():
        assert tensor.shape == exact[name].shape, name
        assert tensor.dtype == single[name].dtype, name
        if name == "top_column" or tensor.numel() == 0:
            continue
        finite = exact[name].isfinite()
        assert torch.equal(finite, tensor.isfinite()), name
        want = exact[name].double()[finite]
        size = max(1.0, want.abs().max().item()) if want.numel() else 1.0
        allowed = 2 * (single[name].double()[finite] - want).abs().max().item() if want.numel() else 0.0
        error = (tensor.double()[finite] - want).abs().max().item() if want.numel() else 0.0
        assert error <= allowed + 8 * torch.finfo(torch.float32).eps * size * case.scale, name


def moved(value, device: str):
    """A tensor, or a dataclass of tensors and of such dataclasses, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    if isinstance(value, Placeable):
        parts = {f.name: moved(getattr(value, f.name), device) for f in fields(value) if f.init}
        return type(value)(**parts)
    return value
