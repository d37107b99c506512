"""GIFT against the paper's hand examples, the authors' outputs, and what must never happen to it."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from models import llava_processor, logits_of, picture, tiny_llama
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

import regaze
from regaze import HeadKnockout, Role, TokenMap
from regaze.errors import BadParameterError, InputError
from regaze.interventions.common.ranking import saliency_map
from regaze.interventions.gift.calibration import find_saliency_layer, layer_shifts
from regaze.interventions.gift.gaze_shift import RowShifts, mean_shift
from regaze.interventions.gift.method import GIFT, published
from regaze.interventions.gift.policy import AmplifyTopHeads
from regaze.kernels import AttentionEdit, Channels, RowSelection, attend
from regaze.toolkit.prompts.columns import column_index, scatter_columns


def close(actual, expected, rtol=1e-5, atol=2e-6):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def mask(count: int, *places: int) -> torch.Tensor:
    chosen = torch.zeros(1, count, dtype=torch.bool)
    chosen[0, list(places)] = True
    return chosen


# The map ----------------------------------------------------------------------------------------------


def saliency_of(attention: torch.Tensor, content: torch.Tensor, columns: torch.Tensor, heads: int):
    """Mean shift and map from attention [B, H, L, L]."""
    shifts = RowShifts.of(content, columns)
    slices = attention[:, :, shifts.request.rows.index].gather(
        -1,
        shifts.index[:, None, None]
        .clamp_min(0)
        .expand(-1, attention.shape[1], len(shifts.request.rows.index), -1),
    )
    mean, total = mean_shift(shifts.positive(slices), shifts.counts, heads)
    return mean, saliency_map(mean, shifts.index >= 0), total


def test_hand_example_of_the_map():
    rows = [[0.1, 0.2, 0.1, 0.6, 0, 0], [0.1, 0.3, 0.05, 0.3, 0.25, 0], [0.3, 0.3, 0.2, 0.1, 0.05, 0.05]]
    attention = torch.zeros(1, 1, 6, 6)
    attention[0, 0, 3:] = torch.tensor(rows)
    mean, found, total = saliency_of(attention, mask(6, 4, 5), mask(6, 0, 1, 2), 1)
    close(mean, torch.tensor([[0.10, 0.05, 0.075]]))
    close(found, torch.tensor([[1.0, 0.0, 0.5]]))
    close(total, torch.tensor([0.225]))


def golden(goldens, name: str):
    folder = goldens / "methods" / "gift"
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def test_golden_saliency(goldens):
    spec, tensors = golden(goldens, "saliency")
    for name, case in spec["cases"].items():
        params, attention = case["params"], tensors[f"{name}/in/attn"]
        content = mask(params["prompt"], *(params["query_start"] + row for row in params["content_rows"]))
        columns = mask(params["prompt"], *range(params["vision_start"], params["vision_end"] + 1))
        layers = [
            saliency_of(attention[None, layer], content, columns, params["heads"] // 2)[0]
            for layer in params["saliency_layers"]
        ]
        mean = torch.stack(layers).mean(0)
        close(mean[0], tensors[f"{name}/out/mean_shift"])
        found = saliency_map(mean, torch.ones_like(mean, dtype=torch.bool))[0]
        close(found, tensors[f"{name}/out/saliency"])
        close((params["alpha"] * found).exp(), tensors[f"{name}/out/weights"], rtol=2e-5)
    assert len(spec["cases"]) >= 3


def test_slices_name_their_columns():
    chosen = torch.tensor(
        [[False, True, False, True], [False, False, False, False], [True, True, True, False]]
    )
    index = column_index(chosen)
    assert index.tolist() == [[1, 3, -1], [-1, -1, -1], [0, 1, 2]]
    wide = scatter_columns(torch.tensor([[5.0, 6.0, 7.0]] * 3), index, 4, 1.0)
    assert wide.tolist() == [[1, 5, 1, 6], [1, 1, 1, 1], [5, 6, 7, 1]]


# The edit ---------------------------------------------------------------------------------------------


def enhance(roles: list[int], gains: list[float], heads: int, beta: float = 1.0, rows=None) -> AttentionEdit:
    """The edit from groups (1 image, 2 question) and column gains."""
    groups = torch.tensor([roles], dtype=torch.uint8)
    channels = Channels(groups=groups, num_groups=3, weights=torch.tensor([[gains]]))
    return AttentionEdit(rows=rows, channels=channels, policy=AmplifyTopHeads(4, 1, 2, 3, heads, beta))


@pytest.mark.parametrize(
    ("beta", "unnormalised"),
    [(1.0, [0.05, 0.1, 0.1, 0.8, 0.2857142857, 0.5]), (1.4, [0.05, 0.1, 0.1, 0.8, 0.4, 0.5])],
)
def test_hand_example_of_the_edit(beta, unnormalised):
    row = torch.tensor([0.05, 0.10, 0.05, 0.20, 0.10, 0.50])
    q, k = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 6, 4)
    edit = enhance([0, 1, 1, 1, 2, 0], [0, 1, 2, 4, 0, 0], 1, beta)
    out = attend(q, k, torch.eye(6)[None, None], edit, mask=row.log()[None, None, None])[0].flatten()
    close(out, torch.tensor(unnormalised) / sum(unnormalised))


def test_golden_row_edit(goldens):
    spec, tensors = golden(goldens, "row_edit")
    for name, case in spec["cases"].items():
        params = case["params"]
        q, k, v, additive = (tensors[f"{name}/in/{part}"] for part in ("q", "k", "v", "mask"))
        roles, gains = [0] * params["k_len"], [0.0] * params["k_len"]
        for column, weight in enumerate(tensors[f"{name}/in/weights"].tolist(), params["vision_start"]):
            roles[column], gains[column] = 1, weight
        for column in range(params["query_start"], params["query_end"] + 1):
            roles[column] = 2
        edit = enhance(
            roles,
            gains,
            params["heads"] // 2,
            params["beta"],
            RowSelection(torch.tensor([params["q_len"] - 1])),
        )
        out = attend(q, k, v, edit, mask=additive)[0].transpose(1, 2)
        close(out, tensors[f"{name}/out/attn_output_after"])
        identity = torch.eye(params["k_len"]).expand(1, params["kv_heads"], -1, -1)
        close(attend(q, k, identity, edit, mask=additive)[0], tensors[f"{name}/out/attn_after"])
    assert len(spec["cases"]) >= 3


class GivenContent(GIFT):
    """GIFT that is told which tokens are content words."""

    def content_tokens(self, context):
        return self.rows_of_content  # type: ignore[attr-defined]


def test_golden_end_to_end(shared, tmp_path):
    spec, tensors = golden(shared / "goldens", "e2e")
    folder = shared / "goldens" / "methods" / "gift"
    shutil.copy(folder / "e2e_config.json", tmp_path / "config.json")
    shutil.copy(folder / "e2e_weights.safetensors", tmp_path / "model.safetensors")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    gaze = regaze.wrap(model)
    for name, case in spec["cases"].items():
        params = case["params"]
        inputs = {part: tensors[f"{name}/in/{part}"] for part in ("input_ids", "pixel_values")}
        length = inputs["input_ids"].shape[1]
        roles = torch.full((1, length), int(Role.SYSTEM))
        roles[0, params["vision_start"] : params["vision_end"] + 1] = Role.IMAGE
        roles[0, params["query_start"] : params["query_end"] + 1] = Role.QUERY
        tokens = TokenMap.from_roles(roles)
        layers = params["enhancement_layers"]
        gift = GivenContent(
            alpha=params["alpha"],
            beta=params["beta"],
            layers=(layers[0], layers[-1]),
            saliency_layer=tuple(params["saliency_layers"]),
        )
        content = mask(length, *(params["query_start"] + row for row in params["content_rows"]))
        object.__setattr__(gift, "rows_of_content", content)
        with gaze.using(gift, tokens=tokens):
            logits = logits_of(model, inputs)[:, 0]
        close(logits, tensors[f"{name}/out/logits_on"], rtol=0, atol=2e-4)
        assert torch.equal(logits.argmax(-1), tensors[f"{name}/out/tokens_on"])
        close(logits_of(model, inputs)[:, 0], tensors[f"{name}/out/logits_off"], rtol=0, atol=2e-4)
    assert len(spec["cases"]) >= 2


# In a model -------------------------------------------------------------------------------------------

QUESTIONS = ["Is there a red dog in the image?", "Please describe this image in detail.", "Is it?"]
IMAGES = [picture(1), picture(2), [picture(3), picture(4)]]
#: With the saliency layer before the enhanced ones, among them, and behind them; several; the rule.
SETTINGS = [
    {"saliency_layer": 1, "layers": (2, 4)},
    {"saliency_layer": 3, "layers": (1, 4)},
    {"saliency_layer": (0, 5), "layers": (2, 3)},
    {"saliency_layer": "auto", "layers": (2, 4)},
]


def gift(**changes) -> GIFT:
    return GIFT(**{"alpha": 4.0, "beta": 1.3, "tagger": "function-words", **SETTINGS[0], **changes})


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs(IMAGES, QUESTIONS)


def test_neutral_strength_is_bit_identical(model, gaze, inputs):
    plain = logits_of(model, inputs)
    with gaze.using(gift(alpha=0.0, beta=1.0)):
        assert torch.equal(plain, logits_of(model, inputs))
    with gaze.using(gift(alpha=1e-9, beta=1.0)):
        close(logits_of(model, inputs), plain, rtol=0, atol=1e-4)
    with gaze.using(gift()):
        assert not torch.allclose(logits_of(model, inputs), plain, atol=1e-2)


@pytest.mark.parametrize("setting", SETTINGS)
def test_batch_equals_singles_and_no_sample_remembers_another(model, gaze, inputs, setting):
    with gaze.using(gift(**setting)):
        together = logits_of(model, inputs)
        for row, (image, question) in enumerate(zip(IMAGES, QUESTIONS, strict=True)):
            alone = logits_of(model, gaze.inputs([image], [question]))
            close(together[:, row], alone[:, 0], rtol=0, atol=2e-5)
    with gaze.using(gift(**setting)):
        assert torch.equal(alone, logits_of(model, gaze.inputs(IMAGES[2:], QUESTIONS[2:])))


@pytest.mark.parametrize("setting", SETTINGS)
def test_prefill_and_decode_equal_two_forwards_by_hand(model, gaze, setting):
    """Measure the map in one pass, edit the rows that predict in another, as the paper has it."""
    method = gift(**setting)
    inputs = gaze.inputs(IMAGES[:1], QUESTIONS[:1])
    tokens = gaze.tokens(inputs)
    length, answer = tokens.length, 4
    with gaze.using(method):
        sequences = model.generate(**inputs, max_new_tokens=answer, do_sample=False, eos_token_id=None)
        logits = logits_of(model, inputs, answer)[:, 0]
    with gaze.recording(slices="all", rows="all", masses=False) as record:
        model(**inputs)
    weights = record[0].slices  # [layers, 1, heads, L, L]
    content = torch.tensor([[" dog" in w or "red" in w or "image" in w for w in decoded(inputs, tokens)]])
    columns = tokens.mask(Role.IMAGE)
    per_layer = [saliency_of(layer, content, columns, 3) for layer in weights]
    if setting["saliency_layer"] == "auto":
        chosen = [max(range(6), key=lambda layer: float(per_layer[layer][2]))]
    else:
        chosen = [setting["saliency_layer"]] if isinstance(setting["saliency_layer"], int) else [0, 5]
    mean = torch.stack([per_layer[layer][0] for layer in chosen]).mean(0)
    gains = torch.zeros(1, length)
    gains[columns] = (4.0 * saliency_map(mean, mean >= 0)).exp()[0]
    groups = (columns + 2 * tokens.mask(Role.QUERY)).to(torch.uint8)
    rows = RowSelection(torch.arange(length - 1, length + answer - 1))
    edit = AttentionEdit(
        rows=rows,
        channels=Channels(groups=groups, num_groups=3, weights=gains[None]),
        policy=AmplifyTopHeads(4, 1, 2, 3, 3, 1.3),
    )
    with gaze.using(Fixed(edit, setting["layers"]), tokens=None):
        full = model(input_ids=sequences[:, :-1], pixel_values=inputs["pixel_values"]).logits
    close(logits, full[0, -answer:], rtol=0, atol=2e-5)


def test_an_answer_in_the_prompt_is_edited_like_a_generated_one(model, gaze):
    inputs = gaze.inputs(IMAGES[:1], QUESTIONS[:1])
    with gaze.using(gift()):
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)[:, :-1]
        step_by_step = logits_of(model, inputs, 4)[:, 0]
        full = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -4:]
    close(step_by_step, full, rtol=0, atol=2e-5)
    with (
        gaze.using(gift(saliency_layer=3)),
        pytest.raises(InputError, match="choose a saliency_layer before"),
    ):
        model(input_ids=ids, pixel_values=inputs["pixel_values"])


def decoded(inputs, tokens) -> list[str]:
    """The words of the question; nothing elsewhere."""
    pieces = llava_processor().tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    query = tokens.mask(Role.QUERY)[0].tolist()
    return [piece.replace("▁", " ") if here else "" for piece, here in zip(pieces, query, strict=True)]


class Fixed(regaze.Intervention):
    """The same edit in some layers of a forward without a cache."""

    def __init__(self, edit, layers):
        object.__setattr__(self, "given", (edit, layers))

    def edit(self, layer, step, context):
        edit, (first, last) = self.given
        return edit if first <= layer <= last else None


def test_only_rows_that_predict_are_edited(model, gaze):
    """The keys and values of the prompt stay the plain ones but for its last token."""
    inputs = gaze.inputs(IMAGES[:1], QUESTIONS[:1])
    plain = model(**inputs).past_key_values
    for setting in SETTINGS[:2]:
        with gaze.using(gift(**setting)):
            edited = model(**inputs).past_key_values
        for layer, (a, b) in enumerate(zip(plain.layers, edited.layers, strict=True)):
            close(a.keys[:, :, :-1], b.keys[:, :, :-1], rtol=0, atol=0)
            same = torch.allclose(a.keys[:, :, -1], b.keys[:, :, -1], atol=1e-4)
            assert same == (layer <= setting["layers"][0])


def test_the_place_of_the_padding_does_not_matter(model, gaze, inputs):
    """Logits of the last real token, teacher-forced; without a replay, so that right padding is allowed."""
    with gaze.using(gift()):
        ids, attended, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
        left = model(**inputs, position_ids=(attended.cumsum(1) - 1).clamp_min(0)).logits[:, -1]
        shift = (attended == 0).sum(1).tolist()
        ids, attended = (
            torch.stack([x.roll(-s) for x, s in zip(t, shift, strict=True)]) for t in (ids, attended)
        )
        logits = model(input_ids=ids, attention_mask=attended, pixel_values=pixels).logits
        close(left, logits[torch.arange(3), attended.sum(1) - 1], rtol=0, atol=2e-5)
    with gaze.using(gift(saliency_layer=3)), pytest.raises(InputError, match="padded on the left"):
        model(input_ids=ids, attention_mask=attended, pixel_values=pixels)


def test_a_prompt_without_an_image_beside_one_with(model, gaze):
    """It is left alone, also in a batch."""
    questions = ["Is there a dog?", "Is there a red dog here?"]
    plain = logits_of(model, gaze.inputs([None], questions[:1]))
    with gaze.using(gift()):
        assert torch.equal(plain, logits_of(model, gaze.inputs([None], questions[:1])))
        both = logits_of(model, gaze.inputs([None, picture(1)], questions))
    close(both[:, 0], plain[:, 0], rtol=0, atol=2e-5)


def test_repeated_words_and_no_words_at_all(model, gaze):
    repeated = gaze.inputs([picture(1)], ["Is the dog a red dog?"])
    with gaze.using(gift()):
        every = logits_of(model, repeated)
    with gaze.using(gift(as_released=True)):
        last = logits_of(model, repeated)
    assert not torch.allclose(every, last, atol=1e-4)
    once = gaze.inputs([picture(1)], ["Is there a dog?"])
    with gaze.using(gift()):
        nothing = logits_of(model, gaze.inputs([picture(1)], ["Is it?"]))
        every = logits_of(model, once)
    with gaze.using(gift(as_released=True)):
        assert torch.equal(every, logits_of(model, once))
    assert torch.isfinite(nothing).all()


def test_beams_agree_with_one_sample_at_a_time(model, gaze, inputs):
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    with gaze.using(gift(saliency_layer=3)):
        together = model.generate(**gaze.inputs(IMAGES[:2], QUESTIONS[:2]), **options)[:, -4:]
        for row in range(2):
            alone = model.generate(**gaze.inputs(IMAGES[row : row + 1], QUESTIONS[row : row + 1]), **options)
            assert torch.equal(together[row], alone[0, -4:])


def test_repeated_keys_and_values_change_nothing(gaze, model):
    """GQA equals MHA whose keys and values are repeated: heads are query heads."""
    config = tiny_llama().config
    few, many = tiny_llama(), tiny_llama(num_key_value_heads=config.num_attention_heads)
    weights = few.state_dict()
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = tensor.unflatten(0, (2, -1)).repeat_interleave(3, 0).flatten(0, 1)
    many.load_state_dict(weights)
    ids = torch.randint(10, 90, (1, 20))
    roles = torch.tensor([[Role.SYSTEM] * 2 + [Role.IMAGE] * 9 + [Role.QUERY] * 6 + [Role.TAIL] * 3])
    outputs = []
    for text_model in (few, many):
        method = GivenContent(alpha=4.0, layers=(2, 4), saliency_layer=1)
        object.__setattr__(method, "rows_of_content", mask(20, 12, 14, 15))
        with regaze.wrap(text_model).using(method, tokens=TokenMap.from_roles(roles)):
            outputs.append(logits_of(text_model, {"input_ids": ids}))
    close(outputs[0], outputs[1], rtol=0, atol=2e-5)
    assert not torch.allclose(outputs[0], logits_of(few, {"input_ids": ids}), atol=1e-3)


def test_it_composes_with_a_knockout(model, gaze, inputs):
    removed = HeadKnockout(heads=tuple((layer, head) for layer in (2, 3, 4) for head in range(6)))
    with gaze.using(removed):
        plain = logits_of(model, inputs)
    with gaze.using(gift(), removed):
        close(logits_of(model, inputs), plain, rtol=0, atol=1e-5)


def test_the_paper_rule_picks_the_layer_with_most_shift(model, gaze):
    found = layer_shifts(gaze, IMAGES[:2], QUESTIONS[:2], "function-words", batch_size=1)
    together = layer_shifts(gaze, IMAGES[:2], QUESTIONS[:2], "function-words")
    close(found, together, atol=1e-6)
    assert found.shape == (6,)
    layer = find_saliency_layer(gaze, IMAGES[:2], QUESTIONS[:2], "function-words")
    assert layer == int(found.argmax())
    kept = model.model.language_model.layers[layer].self_attn.q_proj.weight.detach().clone()
    try:  # without queries every row looks everywhere alike: hardly any shift is left there
        model.model.language_model.layers[layer].self_attn.q_proj.weight.data.zero_()
        assert find_saliency_layer(gaze, IMAGES[:2], QUESTIONS[:2], "function-words") != layer
    finally:
        model.model.language_model.layers[layer].self_attn.q_proj.weight.data.copy_(kept)


def test_layers_follow_the_model():
    assert published("llama", 32) == (11, (12, 22), 5.0)
    assert published("llama", 40) == (10, (14, 20), 5.0)
    assert published("qwen2_vl_text", 28) == (14, (5, 18), 4.0)
    assert published("llama", 6) == (1, (2, 3), 5.0)
    assert published("llama", 1) == (0, (0, 0), 5.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "alpha must be float >= 0 or None, got -1"),
        ({"alpha": math.nan}, "finite number"),
        ({"beta": 0.0}, "beta must be float > 0, got 0"),
        ({"layers": (4, 2)}, "layers must be the first and the last layer"),
        ({"saliency_layer": ()}, "saliency_layer must be a layer"),
        ({"saliency_layer": "best"}, "saliency_layer must be a layer"),
        ({"tagger": "nltk"}, "unknown tagger"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        GIFT(**changes)


def test_layers_that_do_not_exist(model, gaze, inputs):
    for changes, message in (
        ({"layers": (2, 6)}, "layers 2..6 do not exist"),
        ({"saliency_layer": 6}, "layer 6"),
    ):
        with pytest.raises(BadParameterError, match=message), gaze.using(gift(**changes)):
            model(**inputs)


@pytest.mark.parametrize("setting", SETTINGS)
def test_json_round_trip(setting):
    method = gift(**setting)
    assert GIFT.from_dict(json.loads(json.dumps(method.to_dict()))) == method
