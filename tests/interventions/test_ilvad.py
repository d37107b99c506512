"""ILVAD: its map, edited rows and scores by hand and by the authors' outputs, and two answers of a model."""

from __future__ import annotations

import json

import pytest
import torch
from decoding_checks import PROMPTS, check_padding, check_shared_keys, golden, span_roles
from models import context_for, logits_of

from regaze.errors import BadParameterError, InputError
from regaze.interventions import ILVAD
from regaze.interventions.ilvad.evidence import evidence_map, grounding, seen_by_half, text_factors
from regaze.interventions.ilvad.looking import ILVADLooking
from regaze.interventions.ilvad.method import shuffle
from regaze.interventions.ilvad.policy import RaiseEvidence
from regaze.interventions.ilvad.reweighing import AsReleased, Reweighing
from regaze.kernels import AttentionEdit, Channels, StatsRequest, attend
from regaze.toolkit.prompts.token_map import Role

ALL = torch.ones(1, 4, dtype=torch.bool)
ROWS = torch.tensor(
    [[0.05, 0.30, 0.02, 0.03], [0.05, 0.28, 0.30, 0.02], [0.25, 0.30, 0.02, 0.03], [0.05, 0.29, 0.28, 0.02]]
)[:, None]
#: The random model's attention is nearly even: what is above the mean at all counts as bright.
EVEN = ILVAD(tau=1.0, looks=4, layers=(1, 4), alpha=2.0)
ANSWERED = {"max_new_tokens": 6, "eos_token_id": None}


# The map ----------------------------------------------------------------------------------------------


def test_map_by_hand():
    """Column 1, bright in every layer, is a sink and no evidence."""
    assert evidence_map(ROWS, ALL, 1.5).tolist() == [[0, 0, 1, 0]]
    assert evidence_map(ROWS, ALL, 1.5, above_average=False).tolist() == [[0.5, 0, 1, 0]]
    assert evidence_map(ROWS, ALL, 8.0).tolist() == [[0, 0, 0, 0]]


def test_map_of_other_orders_scales_and_widths():
    order = torch.tensor([2, 0, 3, 1])
    assert evidence_map(ROWS[..., order], ALL, 1.5).tolist() == [[1, 0, 0, 0]]
    scaled = ROWS * torch.tensor([1.0, 3.0, 1.0, 1.0])[:, None, None]
    assert evidence_map(scaled, ALL, 1.5, above_average=False).tolist() == [[0.5, 0, 1, 0]]
    wide = torch.cat([ROWS, torch.full((4, 1, 2), 9.0)], -1)  # two columns that the sample does not have
    assert evidence_map(wide, torch.tensor([[True] * 4 + [False] * 2]), 1.5).tolist() == [[0, 0, 1, 0, 0, 0]]


def test_golden_evidence_map(shared):
    spec, tensors = golden(shared / "goldens", "ilvad", "evidence_map")
    for name, case in spec["cases"].items():
        params, rows = case["params"], tensors[f"{name}/in/rows"]  # [n, L, H, P + n]
        image = rows[..., params["image_start"] : params["image_end"]]
        seen = torch.stack([seen_by_half(layer[:, :, None])[:, 0].mean(0) for layer in image.unbind(1)])
        torch.testing.assert_close(seen, tensors[f"{name}/out/mean"], rtol=1e-5, atol=3e-6)
        valid = torch.ones(1, image.shape[-1], dtype=torch.bool)
        found = evidence_map(seen[:, None], valid, params["tau"])[0]
        torch.testing.assert_close(found, tensors[f"{name}/out/map"], rtol=1e-5, atol=3e-6)
        gain = (params["alpha"] * found).exp()
        torch.testing.assert_close(gain, tensors[f"{name}/out/gain"], rtol=2e-5, atol=3e-6)
    assert len(spec["cases"]) >= 2


# A row, and its scores ----------------------------------------------------------------------------------


def test_factors_by_hand():
    scores, scored = torch.tensor([[0.2, 0.6, 0.0]]), torch.ones(1, 3, dtype=torch.bool)
    factors, held = text_factors(scores, scored, 0.3)
    torch.testing.assert_close(factors, torch.tensor([[0.633333, 1.3, 0.3]]))
    assert torch.equal(held, scores)
    torch.testing.assert_close(text_factors(3 * scores + 5, scored, 0.3)[0], factors)
    some = torch.tensor([[True, False, True]])
    torch.testing.assert_close(text_factors(scores, some, 0.3)[0], torch.tensor([[1.3, 1.0, 0.3]]))
    for equal in (torch.full((1, 3), 0.4), scores):  # nothing to rank, a single score
        few = scored if equal is not scores else torch.tensor([[True, False, False]])
        assert text_factors(equal, few, 0.3)[0].tolist() == [[1, 1, 1]]


def test_scores_are_held_within_three_deviations():
    """Twelve scores of which one stands out; least and largest are those before."""
    scores = torch.tensor([[0.0] * 11 + [1.0]])
    factors, held = text_factors(scores, torch.ones(1, 12, dtype=torch.bool), 0.0)
    top = (1 / 12 + 3 * scores.std()).item()
    assert top < 1
    assert held[0, -1].item() == pytest.approx(top)
    assert factors[0, -1].item() == pytest.approx(top)


ROW = torch.tensor([[0.10, 0.10, 0.20, 0.05, 0.25, 0.20, 0.10], [0.05, 0.20, 0.05, 0.10, 0.30, 0.10, 0.20]])


def channels_of(evidence, factors, start, end):
    """Channels of a row whose image is start..end - 1, with evidence alpha S there, text behind it."""
    length = end + len(factors)
    groups = torch.full((1, length), 2, dtype=torch.uint8)
    groups[:, start:end], groups[:, end:] = 1, 0
    weights = torch.zeros(3, 1, length)
    weights[0, :, start:end], weights[1, :, start:end] = evidence, evidence.exp()
    weights[2, :, end:] = factors
    return Channels(groups, 3, weights)


def test_row_by_hand():
    """One head each: head 0 looks at the evidence, head 1 reads the text."""
    evidence = torch.tensor([0.0, 0.0, 1.0, 0.0]) * torch.tensor(4.0).log()
    factors = text_factors(torch.tensor([[0.2, 0.6, 0.0]]), torch.ones(1, 3).bool(), 0.3)[0][0]
    channels = channels_of(evidence, factors, 0, 4)
    masses = channels.masses(ROW[None, :, None])
    edited = channels.reweighted(ROW[None, :, None], RaiseEvidence(1)(masses))[0, :, 0]
    want = torch.tensor(
        [
            [0.0625, 0.0625, 0.5, 0.03125, 0.15625, 0.125, 0.0625],
            [0.064103, 0.256410, 0.064103, 0.128205, 0.243590, 0.166667, 0.076923],
        ]
    )
    torch.testing.assert_close(edited, want, rtol=0, atol=1e-6)
    assert grounding(masses[..., 1], masses[..., 3]).item() == pytest.approx(0.277259, abs=1e-6)


def test_a_row_without_image_and_text():
    masses = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]).expand(1, 4, 1, 6)
    assert (RaiseEvidence(2)(masses)[..., 2] == 1).all()
    zero = RaiseEvidence(2)(torch.zeros(1, 4, 1, 6))
    assert zero.isfinite().all()


def test_golden_row_edit(shared):
    spec, tensors = golden(shared / "goldens", "ilvad", "row_edit")
    for name, case in spec["cases"].items():
        params = case["params"]
        q, k, v, found, scores = (tensors[f"{name}/in/{part}"] for part in ("q", "k", "v", "map", "scores"))
        factors, held = text_factors(scores[None], torch.ones(1, len(scores)).bool(), params["beta"])
        torch.testing.assert_close(held[0], tensors[f"{name}/out/scores_clipped"], rtol=1e-5, atol=3e-6)
        channels = channels_of(
            params["alpha"] * found, factors[0], params["image_start"], params["image_end"]
        )
        policy = RaiseEvidence(params["heads"] // 2)
        request = StatsRequest(full_rows=True, edited=True)
        edit = AttentionEdit(channels=channels, policy=policy, stats=request)
        out, stats = attend(q, k, v, edit)
        torch.testing.assert_close(
            stats.slices[0, :, 0], tensors[f"{name}/out/attn_after"], rtol=1e-5, atol=3e-6
        )
        torch.testing.assert_close(out[0, :, 0], tensors[f"{name}/out/out_after"], rtol=1e-5, atol=3e-6)
        masses = channels.masses(tensors[f"{name}/out/attn_before"][None, :, None])
        saw = grounding(masses[..., 1], masses[..., 3])[0]
        torch.testing.assert_close(saw, tensors[f"{name}/out/grounding"], rtol=1e-5, atol=3e-6)
    assert len(spec["cases"]) >= 2


def test_golden_grounding(shared):
    spec, tensors = golden(shared / "goldens", "ilvad", "grounding")
    for name, case in spec["cases"].items():
        params = case["params"]
        q, k, v, found = (tensors[f"{name}/in/{part}"] for part in ("q", "k", "v", "map"))
        start, end, length = params["image_start"], params["image_end"], params["prompt_length"]
        channels = channels_of(params["alpha"] * found, torch.ones(length - end), start, end)
        stats = attend(q, k, v, StatsRequest(channels=channels).as_edit, is_causal=True)[1]
        saw = grounding(stats.masses[..., 1], stats.masses[..., 3])[0, end:]
        torch.testing.assert_close(saw, tensors[f"{name}/out/grounding"], rtol=1e-5, atol=3e-6)
    assert len(spec["cases"]) >= 1


# The scores over an answer ------------------------------------------------------------------------------


class Steps:
    """The callback of a second answer on layers whose queries, keys and values are given."""

    def __init__(self, callback, tokens, layers, heads):
        self.callback, self.layers, self.length = callback, layers, tokens.length
        self.context = context_for(tokens.roles, layers=layers, heads=heads)
        callback.prepare(self.context)
        callback.on_step(self.context, torch.zeros(tokens.batch, tokens.length))

    def forward(self, q, k, v):
        """Outputs and edited last rows of all layers, from [L, 1, H, Lq, D] and [L, 1, Hkv, Lk, D]."""
        rows = []
        for layer in range(self.layers):
            edit = self.callback.edit(layer, self.context.step, self.context)
            call = {"is_causal": True}
            out, stats = attend(q[layer], k[layer], v[layer], edit, **call)
            self.callback.on_stats(layer, stats, self.context)
            whole = edit.replace(stats=StatsRequest(full_rows=True, edited=True))
            weights = attend(q[layer], k[layer], v[layer], whole, **call)[1].slices[0, :, -1]
            rows.append((weights, out[0, :, -1]))
        return rows

    def again(self, q, k, v):
        self.context.step, self.context.replaying = 1, True
        rows = self.forward(q[..., -1:, :], k, v)
        self.context.step, self.context.replaying = 0, False
        return rows

    def step(self, q, k, v):
        self.context.step += 1
        self.callback.on_step(self.context, torch.zeros(1, 1))
        return self.forward(q, k, v)


def test_golden_sequence(shared):
    """As released: the whole machinery over layers and steps."""
    spec, tensors = golden(shared / "goldens", "ilvad", "sequence")
    for name, case in spec["cases"].items():
        params = case["params"]
        prefill, decode, k, v = (tensors[f"{name}/in/{part}"] for part in ("q_prefill", "q_decode", "k", "v"))
        length, edited = params["prompt_length"], params["edited_layers"]
        method = ILVAD(
            alpha=params["alpha"], beta=params["beta"], layers=(edited[0], edited[-1]), as_released=True
        )
        callback = AsReleased(method, tensors[f"{name}/in/map"][None])
        tokens = span_roles(length, params["image_start"], params["image_end"])
        steps = Steps(callback, tokens, params["layers"], params["heads"])

        def keys(count, k=k, v=v):
            return k[:, None, :, :count], v[:, None, :, :count]

        steps.forward(prefill[:, None], *keys(length))
        assert steps.context.replay_requested
        found = [steps.again(prefill[:, None], *keys(length))]
        scores = []
        for t in range(1, params["decode_steps"] + 1):
            found.append(steps.step(decode[t - 1][:, None, :, None], *keys(length + t)))
            scores.append(steps.context.row_state(callback)["scores"])
        for t, rows in enumerate(found):
            for layer, (weights, out) in enumerate(rows):
                want = tensors[f"{name}/out/last_row"][t, layer, :, : length + t]
                torch.testing.assert_close(weights, want, rtol=1e-5, atol=3e-6)
                torch.testing.assert_close(out, tensors[f"{name}/out/out"][t, layer], rtol=1e-5, atol=3e-6)
        end = params["image_end"]
        for t, kept in enumerate(scores):
            want = tensors[f"{name}/out/scores"][t]
            count = params["score_lengths"][t]
            torch.testing.assert_close(kept[0, end : end + count], want[:count], rtol=1e-5, atol=3e-6)
    assert len(spec["cases"]) >= 1


@pytest.mark.parametrize("score_of", ["predicting", "own"])
def test_whose_score_a_token_of_the_answer_has(score_of):
    """Prompt tokens have their own rows' scores; the last one and the answer's by `score_of`."""
    g = torch.Generator().manual_seed(0)
    method = ILVAD(alpha=1.0, layers=(0, 1), score_of=score_of)
    callback = Reweighing(method, torch.rand(1, 4, generator=g))
    steps = Steps(callback, span_roles(9, 2, 6), 2, 4)
    q, k, v = (torch.randn(2, 1, 4, 12, 8, generator=g) for _ in range(3))
    steps.forward(q[..., :9, :], k[..., :9, :], v[..., :9, :])
    saw = [steps.context.row_state(callback)["sum"][0]]  # rows 6, 7 and 8
    for t in (9, 10, 11):
        steps.step(q[..., t : t + 1, :], k[..., : t + 1, :], v[..., : t + 1, :])
        saw.append(steps.context.row_state(callback)["sum"][0])
    kept = steps.context.row_state(callback)["scores"][0]
    if score_of == "predicting":  # columns 9, 10 and 11: rows 8, 9 and 10
        want = torch.cat([saw[0], saw[0][-1:], saw[1], saw[2]])
    else:
        want = torch.cat([saw[0], saw[1], saw[2], torch.zeros(1)])
    torch.testing.assert_close(kept[6:], want)
    factors = steps.context.state(callback)["step"][1].channels.weights[2, 0]
    assert (factors[:6] == 0).all()
    assert (factors[8] == 1) == (score_of == "predicting")
    assert (factors[11] == 1) == (score_of == "own")


# In a model -------------------------------------------------------------------------------------------


@pytest.fixture
def gaze(gaze, monkeypatch):
    """Its answers are texts of ids: those of random tokens look alike."""

    def numbers(rows, **options):
        return [" ".join(map(str, torch.as_tensor(row).tolist())) for row in rows]

    monkeypatch.setattr(gaze.reader.tokenizer, "batch_decode", numbers)
    return gaze


def ask(gaze, method, rows=(0, 1, 2), **options):
    images, questions = zip(*(PROMPTS[row] for row in rows), strict=True)
    return method.answer(gaze, list(images), list(questions), **{**ANSWERED, **options})


def plain(gaze, rows=(0, 1, 2), **options):
    images, questions = zip(*(PROMPTS[row] for row in rows), strict=True)
    return gaze.ask(list(images), list(questions), **{**ANSWERED, **options})


def test_answers_of_a_batch_are_those_of_its_samples(gaze):
    """One image, two, none; and a second prompt is not touched by the one before."""
    together = ask(gaze, EVEN, batch_size=3)
    for row in range(3):
        alone = ask(gaze, EVEN, (row,))[0]
        assert str(alone) == str(together[row])
        assert torch.equal(alone.evidence, together[row].evidence)
    assert len(together[2].evidence) == 0
    assert str(together[2]) == plain(gaze, (2,))[0]
    assert [str(each) for each in together[:2]] != plain(gaze)[:2]
    assert all(0 < each.evidence.max() <= 1 for each in together[:2])
    assert len(together[1].evidence) == 2 * len(together[0].evidence)


def test_flat_maps_leave_answers_alone(gaze):
    answers = ask(gaze, ILVAD(tau=1e6, looks=3), (0, 1))
    assert [str(each) for each in answers] == plain(gaze, (0, 1))
    assert not any(each.evidence.any() for each in answers)


def test_an_answer_of_a_single_token_gives_no_map(gaze):
    first = logits_of(gaze.model, gaze.inputs(*[[each] for each in PROMPTS[0]]), 1)[0].argmax(-1)
    answer = ask(gaze, EVEN, (0,), eos_token_id=int(first))
    assert not answer[0].evidence.any()


def second_answer(gaze, method, evidence=None, edited=True, **options):
    """The record of the second answer to the first prompt."""
    inputs = gaze.inputs([PROMPTS[0][0]], [PROMPTS[0][1]])
    count = int((inputs["input_ids"] == gaze.model.config.image_token_id).sum())
    evidence = torch.linspace(0, 1, count)[None] if evidence is None else evidence
    kind = AsReleased if method.as_released else Reweighing
    with gaze.using(kind(method, evidence)), gaze.recording(slices="all", edited=edited) as record:
        gaze.model.generate(
            **inputs, **{"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, **options}
        )
    return record[0]


@pytest.mark.parametrize("as_released", [False, True])
def test_rows_keep_their_totals_and_half_of_the_heads_look_more_at_the_evidence(gaze, as_released):
    method = ILVAD(alpha=2.0, layers=(2, 3), as_released=as_released)
    before, after = (second_answer(gaze, method, edited=edited) for edited in (False, True))
    change = (after.slices - before.slices)[:, 0]
    torch.testing.assert_close(after.slices.sum(-1), torch.ones_like(after.slices[..., 0]))
    changed = change.abs().amax(-1) > 1e-6  # [layers, heads, rows]
    assert changed[[2, 3]].any(1).all()
    assert not changed[[0, 1, 4, 5]].any()
    image = before.tokens.mask(Role.IMAGE)[0].nonzero().flatten()
    odds = [
        slices[2, 0, :, :, image[-1]] / slices[2, 0, :, :, image[0]]
        for slices in (before.slices, after.slices)
    ]
    more = odds[1] / odds[0]  # exp(alpha) where the last token has all the evidence and the first has none
    raised = more > 2
    torch.testing.assert_close(more, torch.where(raised, torch.tensor(2.0).exp(), 1.0), rtol=1e-3, atol=1e-3)
    assert (raised.sum(0) == before.slices.shape[2] // 2).all()


def test_padding_and_shared_keys(gaze):
    check_shared_keys(Reweighing(EVEN, torch.linspace(0, 1, 9)[None]))
    image = gaze.inputs(*zip(*PROMPTS, strict=True))["input_ids"] == gaze.model.config.image_token_id
    counts = image.sum(1)
    evidence = torch.rand(3, int(counts.max()), generator=torch.Generator().manual_seed(0))
    evidence = evidence * (torch.arange(int(counts.max())) < counts[:, None])
    check_padding(gaze, Reweighing(EVEN, evidence))


def test_beams_and_samples(gaze):
    torch.manual_seed(0)
    for options in ({"num_beams": 2, "do_sample": False}, {"do_sample": True, "top_k": 3}):
        answers = ask(gaze, EVEN, (0, 1), batch_size=2, **options)
        assert all(str(each) for each in answers)
    beams = {"num_beams": 2, "do_sample": False}
    together = ask(gaze, EVEN, (0, 1), batch_size=2, **beams)
    assert [str(ask(gaze, EVEN, (row,), **beams)[0]) for row in (0, 1)] == [str(each) for each in together]
    assert gaze.ask(PROMPTS[0][0], PROMPTS[0][1], method=EVEN, **ANSWERED, **beams) == [str(together[0])]


def test_neutral_strengths_change_nothing(gaze):
    """No boost, and factors of 1 for text whose grounding is all the same: without evidence there is none."""
    answers = ask(gaze, ILVAD(alpha=0.0, tau=1.0, looks=3), (0, 1))
    assert [str(each) for each in answers] == plain(gaze, (0, 1))


def test_the_model_is_left_as_it_was(gaze):
    inputs = gaze.inputs([PROMPTS[0][0]], [PROMPTS[0][1]])
    before = logits_of(gaze.model, inputs)
    ask(gaze, EVEN, (0, 1))
    assert torch.equal(logits_of(gaze.model, inputs), before)


def test_shuffled_evidence_is_the_control():
    evidence, valid = (
        torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.0]]),
        torch.tensor([[True] * 3, [True, True, False]]),
    )
    found = shuffle(evidence, valid, 1)
    assert [sorted(row) for row in found.tolist()] == [sorted(row) for row in evidence.tolist()]
    assert found[1, 2] == 0
    assert torch.equal(shuffle(evidence[1:, :2], valid[1:, :2], 1), found[1:, :2])
    assert any(not torch.equal(shuffle(evidence, valid, seed), evidence) for seed in range(4))
    (control,) = ILVAD(beta=0.5).controls()
    assert control == ILVAD(beta=0.5, shuffled=0)
    assert control.controls() == ()


def test_json_and_bad_parameters():
    method = ILVAD(layers=(0, 3), score_of="own", shuffled=2)
    assert ILVAD.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    for changes in ({"looks": 1}, {"alpha": -1.0}, {"score_of": "next"}, {"shuffled": -1}):
        with pytest.raises(BadParameterError, match=next(iter(changes))):
            ILVAD(**changes)
    with pytest.raises(BadParameterError, match="leave out score_of='own' or as_released"):
        ILVAD(score_of="own", as_released=True)


def test_two_answers_about_different_images_are_refused(gaze):
    inputs = gaze.inputs([PROMPTS[0][0]], [PROMPTS[0][1]])
    with gaze.using(Reweighing(EVEN, torch.ones(1, 3))), pytest.raises(InputError, match="first answer"):
        gaze.model(**inputs)
    looking = ILVADLooking()
    with gaze.using(looking):
        gaze.model(**inputs)
        with pytest.raises(InputError, match="one generation"):
            gaze.model(**inputs)
