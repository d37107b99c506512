"""Rollout, VL-SAM's flow and relevance, streamed over layers, against dense products of eager attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import llava_processor, picture, small_var, tiny_llama, tiny_llava
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import regaze
from regaze import TokenMap
from regaze.errors import BadParameterError, InputError, ShapeError, UnsupportedModelError
from regaze.interventions import MMA, VCD, HeadKnockout
from regaze.kernels import AttentionEdit, ScoreGate
from regaze.toolkit.analysis import Flow, Inputs, attention_flow, relevance, rollout, with_answers
from regaze.toolkit.model.attention_call import AttentionCall

QUESTIONS = ["Is there a dog in the image?", "What?"]


def close(actual, expected, atol=2e-6):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol)


@pytest.fixture(scope="module")
def inputs(gaze):
    prompts = gaze.inputs([picture(1), picture(2)], QUESTIONS)
    return with_answers(gaze, prompts, ["Yes, a dog", "No"])


def eager_attention(model, inputs, grad=False):
    """[layers][B, H, L, L], and the output."""
    model.set_attn_implementation("eager")
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.set_grad_enabled(grad):
        out = model(**inputs, position_ids=positions, output_attentions=True)
    model.set_attn_implementation("sdpa")
    return out.attentions, out


@pytest.fixture(scope="module")
def dense(model, inputs):
    return eager_attention(model, inputs)[0]


def rows_of(flow: Flow, full: torch.Tensor) -> torch.Tensor:
    """The flow's rows and keys of a dense [B, L, L]; 0 where it has none."""
    columns = flow.columns.clamp_min(0)[:, None].expand(-1, flow.rows.shape[1], -1)
    picked = full[torch.arange(len(full))[:, None], flow.rows.clamp_min(0)].gather(2, columns)
    return picked * (flow.rows >= 0)[..., None] * (flow.columns >= 0)[:, None]


@pytest.mark.parametrize("heads", ["mean", "max", "min", (4, 1)])
@pytest.mark.parametrize(("rows", "columns"), [("all", "all"), ("answer", "image"), ((-1, 70), (3, 70, 9))])
def test_rollout_is_the_product_of_the_dense_matrices(gaze, inputs, dense, heads, rows, columns):
    flow = rollout(gaze, inputs, rows=rows, columns=columns, heads=heads, residual=0.3)
    identity, product = torch.eye(dense[0].shape[-1]), torch.eye(dense[0].shape[-1])
    for layer in dense:
        fused = (
            {"mean": layer.mean(1), "max": layer.amax(1), "min": layer.amin(1)}[heads]
            if isinstance(heads, str)
            else layer[:, heads].mean(1)
        )
        fused = fused / fused.sum(-1, keepdim=True).clamp_min(1e-30)
        product = (0.7 * fused + 0.3 * identity) @ product
    close(flow.values, rows_of(flow, product))
    assert flow.values.abs().max() > 0.01


def test_rows_sum_to_one_and_chosen_layers_are_multiplied(gaze, inputs, dense):
    flow = rollout(gaze, inputs, rows="answer", columns="all", layers=[4, 1])
    real = flow.rows >= 0
    assert real.sum(1).tolist() == [6, 2]  # the prompt's last row and every token of the answer
    close(flow.values.sum(-1)[real], torch.ones(int(real.sum())))
    assert not flow.values[~real].any()
    identity = torch.eye(dense[0].shape[-1])
    product = (dense[4].mean(1) + identity) @ (dense[1].mean(1) + identity) / 4
    close(flow.values, rows_of(flow, product))


def test_without_attention_every_token_stays_what_it_is(gaze, inputs):
    flow = rollout(gaze, inputs, rows="all", columns="all", residual=1.0)
    identity = torch.eye(flow.columns.shape[1]).expand(2, -1, -1)
    assert torch.equal(flow.values, rows_of(flow, identity))


def test_rollout_of_identity_attention_is_the_identity():
    """A model whose tokens look at themselves alone, because a window of one key is all they see."""
    from regaze.kernels import Windows
    from regaze.toolkit.model.callback import Callback

    class Alone(Callback):
        def edit(self, layer, step, context):
            return AttentionEdit(windows=Windows(torch.ones(1, 6, dtype=torch.int64)))

    gaze = regaze.wrap(tiny_llama(), llava_processor().tokenizer)
    ids = {"input_ids": torch.randint(5, 90, (2, 13)), "attention_mask": torch.ones(2, 13, dtype=torch.int64)}
    with gaze.using(Alone()):
        flow = rollout(gaze, ids, rows="all", columns="all", residual=0.2)
        close(flow.values, torch.eye(13).expand(2, -1, -1))
        twice = attention_flow(gaze, ids, rows="all", columns="all", regularise="never").values * 2**5
    powers = torch.eye(13) * (2 * (2**5 - 1))  # S' = I, F = 2 (I + F): 2, 6, 14, 30, 62
    close(twice, powers.expand(2, -1, -1), atol=1e-4)


@pytest.mark.parametrize("regularise", ["once", "each", "never"])
@pytest.mark.parametrize("weigh", [True, False])
def test_flow_of_vl_sam(gaze, inputs, dense, regularise, weigh):
    flow = attention_flow(gaze, inputs, rows="all", columns="image", regularise=regularise, weigh_heads=weigh)
    visible = inputs["attention_mask"].float()
    place = visible.cumsum(1) / visible.sum(1, keepdim=True)
    identity, expected = torch.eye(dense[0].shape[-1]), torch.zeros(2, *dense[0].shape[-2:])
    for layer in dense:
        largest = layer.amax(-1) * visible[:, None]
        weight = largest.sum(-1) / visible.sum(1, keepdim=True) if weigh else torch.ones(2, 6)
        aggregated = (layer * weight[..., None, None]).mean(1)
        if regularise == "each":
            aggregated = aggregated * place[:, None]
        expected = (identity + aggregated) @ (identity + expected)
    if regularise == "once":
        expected = expected * place[:, None]
    close(flow.values * 2 ** len(dense), rows_of(flow, expected), atol=1e-4)


def test_head_weights_and_regulariser_of_the_notes():
    """[1], [.5, .5], [.2, .2, .6] weigh .70, a uniform causal head .611; N = 4 gives .25, .5, .75, 1."""
    first = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.2, 0.6]])
    uniform = torch.tril(torch.ones(3, 3)) / torch.tensor([[1.0], [2.0], [3.0]])
    from regaze.toolkit.analysis.flow import _Prompt, _RegularisedProbe

    class Given:
        query = torch.zeros(1, 2, 3, 1)

        def blocks(self):
            return [slice(0, 2), slice(2, 3)]

        def weights(self, rows):
            return torch.stack([first, uniform])[None, :, rows]

    steps = _RegularisedProbe(torch.arange(3)[None], "once", True, None)
    visible = torch.ones(1, 3, dtype=torch.bool)
    steps.prompt, steps.batch, steps.before = _Prompt(steps.columns, visible, visible.cumsum(1) / 3), 1, 0
    close(steps._head_weights(Given()), torch.tensor([[0.7, 11 / 18]]))


def test_map_over_the_image_and_what_it_needs(gaze, inputs):
    flow = rollout(gaze, inputs, rows="answer")
    cells = flow.tokens.image_cells(1)
    whole = rollout(gaze, inputs, rows="answer", columns="all")
    close(flow.image_map(row=0, sample=1).flatten(), whole.values[1, 0, cells])
    assert flow.image_map().shape == (8, 8)
    with pytest.raises(InputError, match='columns="image"'):
        rollout(gaze, inputs, columns=[5, 6]).image_map()


def test_edited_attention_is_what_flows(gaze, model, inputs):
    with gaze.using(small_var()):
        edited = rollout(gaze, inputs, rows="answer", columns="all", heads=[0], layers=[2])
        with (
            gaze.recording(slices="all", rows="all", edited=True, layers=[2], tokens=inputs.tokens) as record,
            torch.no_grad(),
        ):
            positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
            model(**inputs, position_ids=positions)
    trace = record[0]
    matrix = torch.zeros(2, 84, 84)
    matrix[:, trace.row_position] = trace.slices[0, :, 0]
    close(edited.values, rows_of(edited, (matrix + torch.eye(84)) / 2))
    plain = rollout(gaze, inputs, rows="answer", columns="all", heads=[0], layers=[2])
    assert (plain.values - edited.values).abs().max() > 1e-3


def test_no_more_than_a_block_of_weights_is_ever_held(gaze, inputs, monkeypatch):
    """Blocks of the budget's size, whatever the analysis."""
    sizes, budget, plain = [], 2 * 6 * 84 * 5, AttentionCall.weights

    def weights(call, rows):
        found = plain(call, rows)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr("regaze.toolkit.model.attention_call.CPU_BLOCK_ELEMENTS", budget)
    monkeypatch.setattr(AttentionCall, "weights", weights)
    rollout(gaze, inputs, rows="all", columns="all")
    attention_flow(gaze, inputs)
    relevance(gaze, inputs)
    assert len(sizes) == 4 * 6 * 17  # the flow looks twice; 84 rows in blocks of 5
    assert max(sizes) <= budget


def test_other_branches_and_non_causal_rows(gaze, inputs):
    plain = rollout(gaze, inputs, rows="answer")
    with gaze.using(VCD()):  # its noised rows run in the same forward
        close(rollout(gaze, inputs, rows="answer").values, plain.values)
    with (
        pytest.warns(UserWarning, match="trained with"),
        gaze.using(MMA()),
    ):  # image tokens look at the question behind them: rows read later rows
        opened = rollout(gaze, inputs, rows="all", columns="all")
    real = opened.rows >= 0
    close(opened.values.sum(-1)[real], torch.ones(int(real.sum())))
    assert opened.values.triu(1).abs().max() > 1e-3


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(1, 23),
    batch=st.integers(1, 3),
    padding=st.integers(0, 5),
    block=st.integers(1, 400),
    seed=st.integers(0, 9),
)
def test_any_length_padding_and_block(length, batch, padding, block, seed):
    """Blocks of any size give the product of the dense matrices, on padded text."""
    model = _llama()
    gaze = regaze.wrap(model, llava_processor().tokenizer)
    torch.manual_seed(seed)
    ids = torch.randint(5, 90, (batch, length + padding))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    patched = pytest.MonkeyPatch()
    patched.setattr("regaze.toolkit.model.attention_call.CPU_BLOCK_ELEMENTS", block)
    flow = rollout(gaze, inputs, rows="all", columns="all")
    patched.undo()
    product = torch.eye(length + padding)
    for layer in eager_attention(model, inputs)[0]:
        product = (layer.mean(1) + torch.eye(length + padding)) / 2 @ product
    close(flow.values, rows_of(flow, product))


_MODELS = []


def _llama():
    if not _MODELS:
        _MODELS.append(tiny_llama())
    return _MODELS[0]


# Relevance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("score", ["logit", "log_prob"])
def test_relevance_is_that_of_the_dense_gradients(inputs, frozen, propagate, score):
    model = tiny_llava()
    gaze = regaze.wrap(model, llava_processor())
    attentions, out = eager_attention(model, inputs, grad=True)
    scores = out.logits if score == "logit" else out.logits.log_softmax(-1)
    model.requires_grad_(not frozen)
    flow = relevance(gaze, inputs, rows="answer", columns="all", score=score, propagate=propagate)
    length = inputs["input_ids"].shape[1]
    ids, roles = inputs["input_ids"], inputs.tokens.roles
    for sample, row in (flow.rows >= 0).nonzero().tolist():
        place = int(flow.rows[sample, row])
        answered_next = place + 1 < length and roles[sample, place + 1] == regaze.Role.OUTPUT
        target = ids[sample, place + 1] if answered_next else scores[sample, place].argmax()
        slopes = torch.autograd.grad(scores[sample, place, target], attentions, retain_graph=True)
        cams = [(a[sample] * g[sample].clamp_min(0)).mean(0) for a, g in zip(attentions, slopes, strict=True)]
        if propagate:
            total = torch.eye(length)
            for cam in cams:
                total = total + cam @ total
        else:
            total = torch.stack(cams).mean(0)
        close(flow.values[sample, row], total[place], atol=1e-6)
    assert not flow.values[flow.rows < 0].any()
    assert all(p.grad is None for p in model.parameters())


def test_relevance_of_given_targets_inside_inference_mode(gaze, inputs):
    targets = torch.tensor([[7], [9]])
    with torch.inference_mode():
        made_inside = {name: value.clone() for name, value in inputs.items()}
        one = relevance(gaze, Inputs(made_inside, inputs.tokens), rows="last", targets=targets)
    torch.testing.assert_close(one.values, relevance(gaze, inputs, rows="last", targets=targets).values)
    assert one.values.shape == (2, 1, 64)
    assert one.values.min() >= 0
    assert not torch.equal(one.values, relevance(gaze, inputs, rows="last", targets=targets + 1).values)
    with pytest.raises(ShapeError, match=r"targets must be \[B, R\] = \[2, 1\]"):
        relevance(gaze, inputs, targets=torch.tensor([7, 9]))


def test_a_head_that_is_removed_is_relevant_nowhere(gaze, inputs):
    with gaze.using(HeadKnockout(heads=[(3, head) for head in range(6)])):
        silent = relevance(gaze, inputs, layers=[3], columns="all", propagate=False)
    assert not silent.values.any()
    assert relevance(gaze, inputs, layers=[3], columns="all", propagate=False).values.max() > 0


# Other attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_soft_caps_windows_and_sinks(kind):
    """Models whose attention is more than a softmax, with sliding windows shorter than the prompt."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 6}
    sizes |= {"vocab_size": 97, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3}
    sizes |= {"sliding_window": 5, "attn_implementation": "eager", "pad_token_id": 0}
    if kind == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**sizes, attn_logit_softcapping=2.0)).eval()
    else:
        model = GptOssForCausalLM(GptOssConfig(**sizes, num_local_experts=2, num_experts_per_tok=1)).eval()
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks, std=2.0)
    ids, mask = torch.randint(1, 97, (2, 11)), torch.ones(2, 11, dtype=torch.int64)
    mask[1, :4] = 0
    roles = torch.where(mask.bool(), int(regaze.Role.QUERY), int(regaze.Role.PAD))
    inputs = Inputs({"input_ids": ids, "attention_mask": mask}, TokenMap.from_roles(roles))
    flow = rollout(regaze.wrap(model), inputs, rows="all", columns="all")
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, output_attentions=True)
    product, identity = torch.eye(11), torch.eye(11)
    for layer in out.attentions:
        fused = layer[..., :11].mean(
            1
        )  # gpt-oss gives its sink's weight as one column more, or leaves it out
        fused = fused / fused.sum(-1, keepdim=True).clamp_min(1e-30)
        product = (fused + identity) / 2 @ product
    close(flow.values, rows_of(flow, product), atol=1e-5)


# Vision models used alone -----------------------------------------------------------------------------


def test_a_vision_transformer(gaze):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 3}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=20, patch_size=4, num_labels=11)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    inputs = {"pixel_values": torch.randn(2, 3, 20, 20)}
    vit = regaze.wrap(model)
    flow = rollout(vit, inputs, rows=[0])
    found = relevance(vit, inputs, rows=[0], targets=torch.tensor([[4], [9]]))
    model.set_attn_implementation("eager")
    out = model(**inputs, output_attentions=True)
    product = torch.eye(26)
    for layer in out.attentions:
        product = (layer.mean(1) + torch.eye(26)) / 2 @ product
    close(flow.values[:, 0], product[:, 0, 1:].detach())
    assert flow.image_map(sample=1).shape == (5, 5)
    slopes = torch.autograd.grad(out.logits[0, 4] + out.logits[1, 9], out.attentions)
    total = torch.eye(26)
    for layer, slope in zip(out.attentions, slopes, strict=True):
        total = total + (layer * slope.clamp_min(0)).mean(1) @ total
    close(found.values[:, 0], total[:, 0, 1:].detach(), atol=1e-5)
    with pytest.raises(UnsupportedModelError, match="has no logits"):
        relevance(
            regaze.wrap(gaze.model.model.vision_tower),
            {"pixel_values": torch.randn(1, 3, 112, 112)},
            rows=[0],
        )


# Calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (7, 1)])
def test_a_calls_weights_and_their_gradient(heads, kv_heads):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 9, 4) for h in (heads, kv_heads, kv_heads))
    group = heads // kv_heads
    dense = (q @ k.repeat_interleave(group, 1).mT / 2).masked_fill(
        ~torch.ones(9, 9).tril().bool(), -torch.inf
    )
    dense = dense.softmax(-1).requires_grad_()
    out = (dense @ v.repeat_interleave(group, 1)).transpose(1, 2)
    gradient = torch.randn_like(out)
    options = {"mask": None, "scaling": 0.5, "is_causal": True, "softcap": None, "sinks": None}
    call = AttentionCall(q, k, v, out, AttentionEdit(), options)
    masked = AttentionCall(
        q, k, v, out, AttentionEdit(), {**options, "mask": torch.ones(1, 1, 9, 9).tril().bool()}
    )
    assert call.causal
    assert masked.causal
    for rows in (slice(0, 4), slice(4, 9)):
        for each in (call, masked):
            assert each.weights(rows).shape[-1] == rows.stop
            close(each.weights(rows), dense[:, :, rows, : rows.stop].detach())
        (expected,) = torch.autograd.grad(out, dense, gradient, retain_graph=True)
        close(call.weight_gradient(rows, gradient), expected[:, :, rows])
    halved = AttentionCall(q, k, v, out, AttentionEdit(head_gain=torch.full((1, heads), 0.5)), options)
    close(halved.weight_gradient(slice(0, 9), gradient), expected / 2)
    gate = ScoreGate(torch.ones(1, 3, dtype=torch.bool), kept=0, factor=0.5)  # which scales all heads
    gated = AttentionCall(q, k, v, out, AttentionEdit(score_gate=gate), options)
    close(gated.weight_gradient(slice(4, 9), gradient), expected[:, :, 4:] / 2)


# Errors -----------------------------------------------------------------------------------------------


def test_what_cannot_be_asked(gaze, inputs):
    for wrong, message in (
        ({"rows": "first"}, "rows must be one of last, answer, text, all"),
        ({"rows": [84]}, r"rows must be positions in 0\.\.83"),
        ({"columns": "text"}, 'columns must be "image", "all"'),
        ({"columns": []}, "one at the least"),
        ({"heads": "median"}, 'heads must be "mean"'),
        ({"heads": [6]}, r"heads \[6\] do not exist"),
        ({"layers": [0, 6]}, r"layers \[6\] do not exist; there are 0\.\.5"),
        ({"residual": 1.5}, "residual is a share"),
    ):
        with pytest.raises(BadParameterError, match=message):
            rollout(gaze, inputs, **wrong)
    with pytest.raises(BadParameterError, match="regularise must be"):
        attention_flow(gaze, inputs, regularise="twice")
    with pytest.raises(BadParameterError, match="score must be"):
        relevance(gaze, inputs, score="loss")
    with pytest.raises(InputError, match="the prompt has no image"):
        rollout(gaze, gaze.inputs([None], ["What?"]))


def test_answers_that_cannot_be_forced(gaze):
    prompts = gaze.inputs([picture(1), picture(2)], QUESTIONS)
    with pytest.raises(InputError, match="1 answers for 2 prompts"):
        with_answers(gaze, prompts, ["Yes"])
    with pytest.raises(InputError, match="the answers are empty"):
        with_answers(gaze, prompts, ["", ""])
    with pytest.raises(InputError, match="a list of B texts"):
        with_answers(gaze, prompts, "Yes")
    with pytest.raises(ShapeError, match=r"\[B, T\] ids"):
        with_answers(gaze, prompts, torch.tensor([1, 2]))


def test_forced_answers_are_the_generated_ones(gaze, model):
    prompts = gaze.inputs([picture(1), picture(2)], QUESTIONS)
    ends = model.generation_config.eos_token_id
    ids = torch.tensor([[20, 21, 22, 23], [24, ends, 3, 3]])
    forced = with_answers(gaze, prompts, ids)
    assert forced["input_ids"][:, -4:].tolist() == [[20, 21, 22, 23], [24, 3, 3, 3]]
    assert forced["attention_mask"][:, -4:].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert forced.tokens.answering().sum(1).tolist() == [5, 2]
    assert torch.equal(forced.tokens.image_cells(1), gaze.tokens(prompts).image_cells(1))
