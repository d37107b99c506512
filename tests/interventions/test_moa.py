"""MoA spans: the rule, the authors' layouts and influence, and what heads see in a model."""

from __future__ import annotations

import json

import pytest
import torch
from models import llava_processor, logits_of, picture, tiny_llama
from safetensors.torch import load_file

import regaze
from regaze.errors import BadParameterError, CompositionError, InputError, ShapeError
from regaze.interventions.moa.influence import block_influence, block_layout, dropped_influence, key_influence
from regaze.interventions.moa.method import UNLIMITED, MoA, read_plan, spans

# The rule ---------------------------------------------------------------------------------------------


def span_of(alpha: float, beta: float, length: int, block: int = 64) -> int:
    return int(spans(*torch.tensor([alpha, beta, length], dtype=torch.float64), block))


def test_spans_are_elastic():
    assert [span_of(-1024, 0.5, n) for n in (2048, 4096, 16384)] == [64, 1024, 7168]  # at least a block
    assert [span_of(100, 0.25, n) for n in (64, 640, 650)] == [64, 64 + 128, 64 + 128]
    assert span_of(0, 1.0, 700) == UNLIMITED
    assert span_of(-64, 1.0, 640) == 576
    assert span_of(0, 0.5, 40, block=8) == 16
    assert span_of(0, 0.7, 640) == 448
    assert block_layout(0, 0.7, 640)[-1].sum() == 7 + 1


def golden(goldens, name):
    folder = goldens / "methods" / "moa"
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def test_golden_spans(goldens):
    spec, tensors = golden(goldens, "span")
    for name, case in spec["cases"].items():
        params = case["params"]
        size = (params["length"], params["block_size"])
        for number, rule in enumerate(params["rules_alpha_beta"]):
            assert torch.equal(block_layout(*rule, *size), tensors[f"{name}/out/layout"][number].bool())
            density = float(block_layout(*rule, *size)[-1].double().mean())
            assert density == pytest.approx(float(tensors[f"{name}/out/density"][number]), abs=1e-9)
            dropped = dropped_influence(tensors[f"{name}/in/block_influence"], *rule, *size)
            torch.testing.assert_close(dropped, tensors[f"{name}/out/cost"][:, number], rtol=0, atol=1e-4)


def test_golden_influence(goldens):
    spec, tensors = golden(goldens, "influence")
    for name, case in spec["cases"].items():
        effect = key_influence(tensors[f"{name}/in/attn"], tensors[f"{name}/in/grad"])
        expected = tensors[f"{name}/out/effect"].tril()
        torch.testing.assert_close(effect, expected, rtol=1e-4, atol=1e-5)
        if (blocks := tensors.get(f"{name}/out/block_abs_effect")) is not None:
            torch.testing.assert_close(block_influence(effect, case["params"]["block"]), blocks)


def test_influence_is_the_first_order_loss_of_a_key():
    """The hand row, and the derivative of a loss that is really re-computed without the key."""
    row, slope = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, -1.0, 2.0])
    weights, gradient = torch.eye(3), torch.zeros(3, 3)
    weights[2], gradient[2] = row, slope
    expected = torch.tensor([-0.4, 0.6857, -0.35])
    torch.testing.assert_close(key_influence(weights, gradient)[2], expected, rtol=0, atol=1e-4)
    for j in range(3):
        left = row.clone()
        left[j] = 0
        torch.testing.assert_close((slope * (left / left.sum() - row)).sum(), expected[j], rtol=0, atol=1e-4)
    with pytest.raises(ShapeError, match=r"must be \[..., L, L\]"):
        key_influence(weights, gradient[:2])
    with pytest.raises(ShapeError, match="not a multiple of the block size"):
        block_influence(torch.zeros(6, 6), 4)


# In a model -------------------------------------------------------------------------------------------

QUESTIONS = ["Is there a dog in the image?", "Please describe this image in detail.", "What?"]
IMAGES = [picture(1), picture(2), [picture(3), picture(4)]]
SMALL = MoA(beta=0.3, block=8)


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs(IMAGES, QUESTIONS)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A plan for 6 layers of 6 heads in which spans differ between heads; layer 0 keeps everything."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    alphas, betas = torch.randint(-2, 3, (6, 6)) * 8, torch.rand(6, 6) * 0.8
    alphas[0], betas[0] = 0, 1
    path.write_text(json.dumps({"alphas": alphas.tolist(), "betas": betas.tolist()}))
    return path


def test_a_full_span_is_bit_identical(model, gaze, inputs):
    plain = logits_of(model, inputs)
    with gaze.using(MoA(beta=1.0, block=8)):
        assert torch.equal(plain, logits_of(model, inputs))
    with gaze.using(MoA(alpha=0, beta=1.0)):
        assert torch.equal(plain, logits_of(model, inputs))


def test_heads_see_their_span_and_the_first_block(model, gaze, inputs, plan):
    """Rows of prefill and decode, with left padding: which weights are zero, and that the rest sum to one."""
    moa, rules = MoA(str(plan), block=8), read_plan(plan)
    with gaze.using(moa), gaze.recording(slices="all", masses=False, rows="all", edited=True) as record:
        logits_of(model, inputs, tokens=4)
    mask = inputs["attention_mask"].bool()
    lengths, first = mask.sum(1), mask.int().argmax(1)
    seen = record[0].slices  # [layers, B, H, rows, keys]: the prompt's, then three steps
    mask = torch.cat([mask, torch.ones(3, 3, dtype=torch.bool)], 1)
    assert seen.shape[-2:] == (mask.shape[1], mask.shape[1])
    rows = mask[:, None, :].expand(seen.shape[1:4])
    torch.testing.assert_close(seen.sum(-1)[:, rows], torch.ones(6, int(rows.sum())))
    row, key = torch.arange(mask.shape[1])[:, None], torch.arange(mask.shape[1])
    for layer in range(6):
        span = spans(rules[0, layer], rules[1, layer], lengths[:, None], 8)  # [B, H]
        recent = row - key < span[:, :, None, None]
        start = (key - first[:, None] < 8)[:, None, None]
        causal = (key <= row) & mask[:, None, None] & mask[:, None, :, None]
        assert torch.equal((seen[layer] > 0) & mask[:, None, :, None], (recent | start) & causal), layer


def test_one_rule_for_all_heads_is_counted_exactly(model, gaze):
    """0.7 of 80 tokens in blocks of 8 is 7 blocks, though 0.7 in fp32 is below 0.7."""
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image? Yes"])
    assert inputs["input_ids"].shape[1] == 80
    with (
        gaze.using(MoA(beta=0.7, block=8)),
        gaze.recording(slices="all", masses=False, edited=True) as record,
    ):
        model(**inputs)
    assert ((record[0].slices > 0).sum(-1) == 7 * 8 + 8).all()


def test_batch_equals_singles(model, gaze, inputs, plan):
    for moa in (SMALL, MoA(str(plan), block=8)):
        with gaze.using(moa):
            together = logits_of(model, inputs)
            for row, (image, question) in enumerate(zip(IMAGES, QUESTIONS, strict=True)):
                alone = logits_of(model, gaze.inputs([image], [question]))
                torch.testing.assert_close(together[:, row], alone[:, 0], rtol=0, atol=1e-5)


def test_second_sample_does_not_depend_on_the_first(model, gaze):
    first, second = (gaze.inputs([picture(i)], [q]) for i, q in enumerate(QUESTIONS[:2]))
    with gaze.using(SMALL):
        alone = logits_of(model, second)
    with gaze.using(SMALL):
        logits_of(model, first)
        assert torch.equal(alone, logits_of(model, second))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_prefill_and_decode_equal_one_full_forward(model, gaze, plan, cache):
    inputs = gaze.inputs([picture(1)], QUESTIONS[:1])
    options = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
    with gaze.using(MoA(str(plan), block=8)):
        out = model.generate(
            **inputs,
            max_new_tokens=12,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=None,
            **options,
        )
        full = model(input_ids=out.sequences[:, :-1], pixel_values=inputs["pixel_values"]).logits[:, -12:]
    torch.testing.assert_close(torch.stack(out.logits, 1), full, rtol=0, atol=1e-5)


def test_right_padding_equals_left_padding(model, gaze, inputs):
    with gaze.using(SMALL):
        ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
        left = model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits[:, -1]
        shift = (mask == 0).sum(1).tolist()
        ids, mask = (torch.stack([x.roll(-s) for x, s in zip(t, shift, strict=True)]) for t in (ids, mask))
        logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    torch.testing.assert_close(left, logits[torch.arange(3), mask.sum(1) - 1], rtol=0, atol=1e-5)


def test_query_heads_that_share_keys_have_their_own_spans(plan):
    """The same model with its keys and values repeated (one key head per head) gives the same logits."""
    grouped = tiny_llama(num_hidden_layers=6)
    whole = tiny_llama(num_hidden_layers=6, num_key_value_heads=6)
    weights = dict(grouped.state_dict())
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = weight.unflatten(0, (2, -1)).repeat_interleave(3, 0).flatten(0, 1)
    whole.load_state_dict(weights)
    torch.manual_seed(1)
    ids = torch.randint(4, 200, (2, 60))
    logits = []
    for model in (grouped, whole):
        with regaze.wrap(model, llava_processor().tokenizer).using(MoA(str(plan), block=8)):
            logits.append(model(ids).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    assert (grouped(ids).logits - logits[0]).abs().max() > 1e-2


def test_two_at_once_are_refused(model, gaze, inputs):
    with pytest.raises(CompositionError, match="windows"), gaze.using(SMALL, MoA(beta=0.2, block=8)):
        model.generate(**inputs, max_new_tokens=1)


# Parameters and files ---------------------------------------------------------------------------------


def test_a_plan_of_another_model(gaze, model, inputs, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"alphas": [[0.0] * 4] * 2, "betas": [[0.5] * 4] * 2}))
    refused = pytest.raises(BadParameterError, match="2 layers of 4 heads; the model has 6 layers of 6")
    with refused, gaze.using(MoA(str(path))):
        model(**inputs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"plan\.json:1: not valid JSON"),
        ('{"alphas": [[1]]}', "is no plan.*betas"),
        ('{"alphas": [[1]], "betas": [[1], [2]]}', "is no plan"),
        ('{"alphas": [1], "betas": [2]}', "layers x heads"),
    ],
)
def test_files_that_are_no_plan(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_plan(path)


def test_a_missing_plan(tmp_path):
    with pytest.raises(InputError, match=r"^plan .+ cannot be read"):
        read_plan(tmp_path / "nothing.json")


@pytest.mark.parametrize(("changes", "message"), [({"block": 0}, "block"), ({"beta": 1.5}, "beta")])
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        MoA(**changes)


def test_it_survives_json(plan):
    moa = MoA(str(plan), block=8)
    assert MoA.from_dict(json.loads(json.dumps(moa.to_dict()))) == moa
