"""The modality-mutual mask: the authors' masks, what reaches what in a model, and the training collator."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from models import logits_of, picture, tiny_llama
from safetensors.torch import load_file
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import regaze
from regaze import VAR, Role, TokenMap
from regaze.errors import InputError, ShapeError
from regaze.interventions.mma.method import MMA
from regaze.interventions.mma.training import IGNORED, MutualCollator, first_turn, mma_mask, mma_mask_mod

S, I, P, Q, T, O, PAD = (  # noqa: E741
    Role.SYSTEM,
    Role.IMAGE,
    Role.SEPARATOR,
    Role.QUERY,
    Role.TAIL,
    Role.OUTPUT,
    Role.PAD,
)
#: The hand example: s i1 i2 i3 q1 q2 A a1.
HAND = [[S, I, I, I, Q, Q, T, O]]
TRAINED = MMA(trained=True)


# The mask ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("as_released", "ones", "row"), [(False, 42, "11001100"), (True, 45, "11001110")])
def test_hand_example(as_released, ones, row):
    mask = mma_mask(HAND, as_released=as_released)
    assert mask.shape == (1, 1, 8, 8)
    assert mask.sum() == ones
    assert "".join(str(int(x)) for x in mask[0, 0, 1]) == row


def golden_roles(params, ids, attention) -> torch.Tensor:
    """Roles of the expanded tokens, from positions in the unexpanded ids."""
    n, rows = params["n_latents"], []
    for sample, row, shown in zip(params["samples"], ids, attention, strict=True):
        roles = []
        for position in range(len(row)):
            role = S if position < sample["image_pos"] else Q
            role = T if sample["question_end"] <= position <= sample["assistant"] else role
            role = O if position > sample["assistant"] else role
            role = PAD if not shown[position] else role
            roles += [I] * n if row[position] == params["image_id"] else [role]
        rows.append(roles)
    return torch.tensor(rows)


def test_golden_masks(goldens):
    folder = goldens / "methods" / "mma"
    spec, tensors = json.loads((folder / "mask.json").read_text()), load_file(folder / "mask.safetensors")
    for name, case in spec["cases"].items():
        roles = golden_roles(
            case["params"], tensors[f"{name}/in/ids"], tensors[f"{name}/in/attention"].bool()
        )
        for kind in ("paper", "code"):
            mask = mma_mask(roles, as_released=kind == "code")
            assert torch.equal(mask, tensors[f"{name}/out/mask_{kind}"].bool()), (name, kind)
    assert len(spec["cases"]) >= 3


def test_several_images_see_the_text_after_them_and_no_later_image():
    roles = [[S, I, I, P, I, I, Q, T]]
    mask = mma_mask(roles)[0, 0]
    assert mask[1].tolist() == [True, True, False, True, False, False, True, False]
    assert mask[4].tolist() == [True, True, True, True, True, False, True, False]
    assert torch.equal(mask[[0, 3, 6, 7]], torch.ones(8, 8, dtype=torch.bool).tril()[[0, 3, 6, 7]])


@pytest.mark.parametrize("as_released", [False, True])
def test_of_a_conversation_only_the_first_turn_is_opened(as_released):
    first, second = [S, I, I, Q, T, O, O], [Q, Q, T, O]
    mask = mma_mask([first + second], as_released=as_released)[0, 0]
    assert torch.equal(mask[:7, :7], mma_mask([first], as_released=as_released)[0, 0])
    assert torch.equal(mask[:, 7:], torch.ones(11, 11, dtype=torch.bool).tril()[:, 7:])


@pytest.mark.parametrize("roles", [[S, Q, Q, T, O], [S, I, I, O], [Q, Q, I, I, T]])
def test_nothing_to_open_is_the_causal_mask(roles):
    assert torch.equal(mma_mask([roles])[0, 0], torch.ones(len(roles), len(roles), dtype=torch.bool).tril())


def test_padding_is_hidden_on_either_side():
    roles = torch.tensor([[PAD, PAD, S, I, Q, T], [S, I, Q, T, PAD, PAD]])
    mask, alone = mma_mask(roles)[:, 0], mma_mask([[S, I, Q, T]])[0, 0]
    assert torch.equal(mask[0, 2:, 2:], alone)
    assert torch.equal(mask[1, :4, :4], alone)
    assert not mask[0, :, :2].any()
    assert not mask[1, :, 4:].any()
    as_mask = mma_mask(torch.where(roles == PAD, Q, roles), attention_mask=(roles != PAD).long())[:, 0]
    assert not as_mask[0, :, :2].any()
    assert not as_mask[1, :, 4:].any()


def test_masks_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"attention_mask is \[1, 5\].*\[1, 8\]"):
        mma_mask(HAND, torch.ones(1, 5))
    with pytest.raises(InputError, match=r"roles must be \[B, L\]"):
        mma_mask(HAND[0])


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_agrees():
    torch.manual_seed(0)
    roles = torch.tensor([[S, *[I] * 70, *[Q] * 60, T, O, O], [S, *[I] * 30, *[Q] * 9, T, *[PAD] * 93]])
    batch, length = roles.shape
    q, k, v = torch.randn(3, batch, 2, length, 16)
    blocks = create_block_mask(mma_mask_mod(roles), batch, None, length, length, device="cpu")
    flex = flex_attention(q, k, v, block_mask=blocks)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, mma_mask(roles))
    torch.testing.assert_close(flex, dense, rtol=0, atol=1e-5)


# What reaches what ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reach(model):
    """Layers of the hand example whose row changes when the embedding of a token does: f(token) -> [6, 8]."""
    gaze, tokens = regaze.wrap(model), TokenMap.from_roles(HAND)
    torch.manual_seed(3)
    embeddings = torch.randn(1, 8, 192)

    def states(given, intervention):
        with gaze.using(intervention, tokens=tokens), torch.no_grad():
            out = model(inputs_embeds=given, output_hidden_states=True)
        return torch.stack(out.hidden_states[1:])[:, 0]

    def changed(token, intervention=TRAINED):
        other = embeddings.clone()
        other[0, token] = torch.randn(192)
        difference = states(embeddings, intervention) - states(other, intervention)
        return difference.abs().amax(-1) > 1e-4

    return changed


def test_a_question_token_reaches_the_image_at_once_and_the_question_through_it(reach):
    q2 = reach(5)
    assert q2[0].tolist() == [False, True, True, True, False, True, True, True]  # s and q1 are as they were
    assert q2[1].tolist() == [False, True, True, True, True, True, True, True]  # from layer 2 on q1 is not
    assert not q2[:, 0].any()


def test_the_answer_reaches_nothing_before_it(reach):
    assert reach(7)[:, :7].sum() == 0
    assert reach(7, MMA(as_released=True, trained=True))[:, :7].sum() == 0


def test_the_assistant_marker_is_seen_in_the_release_only(reach):
    assert not reach(6)[:, :6].any()
    assert reach(6, MMA(as_released=True, trained=True))[0, 1:4].all()


def test_a_later_image_token_reaches_an_earlier_one_from_the_second_layer_on(reach):
    i3 = reach(3)
    assert not i3[0, 1]
    assert i3[1:, 1].all()


def test_without_the_mask_nothing_flows_back(reach):
    assert not reach(5, VAR(moved=0.0))[:, :5].any()


# In a model -------------------------------------------------------------------------------------------

QUESTIONS = ["Is there a dog in the image?", "Please describe this image in detail.", "What?"]
IMAGES = [picture(1), picture(2), [picture(3), picture(4)]]


@pytest.fixture(scope="module")
def inputs(gaze):
    return gaze.inputs(IMAGES, QUESTIONS)


@pytest.mark.parametrize("as_released", [False, True])
def test_it_changes_the_answer_and_warns_once_per_use(model, gaze, inputs, as_released):
    plain = logits_of(model, inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        with gaze.using(MMA(as_released=as_released)):
            edited = logits_of(model, inputs)
            logits_of(model, inputs)
    assert [str(w.message)[:11] for w in caught] == ["MMA changes"]
    assert ((plain - edited).abs().amax((0, 2)) > 1e-4).all()


def test_no_image_is_bit_identical_and_does_not_warn(model, gaze):
    inputs = gaze.inputs([None, None], QUESTIONS[:2])
    plain = logits_of(model, inputs)
    with warnings.catch_warnings(), gaze.using(MMA()):
        warnings.simplefilter("error")
        assert torch.equal(plain, logits_of(model, inputs))


def test_a_text_model_is_left_alone():
    model = tiny_llama()
    gaze, ids = regaze.wrap(model), torch.arange(10, 30)[None]
    plain = model(ids).logits
    with gaze.using(TRAINED, tokens=TokenMap.from_roles(torch.full((1, 20), int(Q)))):
        assert torch.equal(plain, model(ids).logits)


def test_batch_equals_singles(model, gaze, inputs):
    mixed = gaze.inputs([*IMAGES, None], [*QUESTIONS, QUESTIONS[0]])
    with gaze.using(TRAINED):
        together = logits_of(model, mixed)
        for row, (image, question) in enumerate(zip(IMAGES, QUESTIONS, strict=True)):
            alone = logits_of(model, gaze.inputs([image], [question]))
            torch.testing.assert_close(together[:, row], alone[:, 0], rtol=0, atol=1e-5)
    plain = logits_of(model, gaze.inputs([None], QUESTIONS[:1]))  # a sample without an image in such a batch
    torch.testing.assert_close(together[:, 3], plain[:, 0], rtol=0, atol=1e-5)


def test_second_sample_does_not_depend_on_the_first(model, gaze):
    first, second = (gaze.inputs([picture(i)], [q]) for i, q in enumerate(QUESTIONS[:2]))
    with gaze.using(TRAINED):
        alone = logits_of(model, second)
    with gaze.using(TRAINED):
        logits_of(model, first)
        assert torch.equal(alone, logits_of(model, second))


def answered(model, gaze, image, question):
    """Greedy logits [n, V] of n steps and the ids [1, L] that gave them."""
    inputs = gaze.inputs([image], [question])
    out = model.generate(
        **inputs,
        max_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    return torch.stack(out.logits, 1)[0], out.sequences[:, :-1], inputs["pixel_values"]


@pytest.mark.parametrize("image", [IMAGES[0], IMAGES[2]], ids=["one image", "two images"])
def test_prefill_and_decode_equal_one_full_forward(model, gaze, image):
    with gaze.using(TRAINED):
        steps, ids, pixels = answered(model, gaze, image, QUESTIONS[0])
        full = model(input_ids=ids, pixel_values=pixels).logits[0, -6:]
    torch.testing.assert_close(steps, full, rtol=0, atol=1e-5)


@pytest.mark.parametrize("as_released", [False, True])
def test_the_training_mask_is_the_mask_of_the_intervention(model, gaze, inputs, as_released):
    mma, ids, pixels = MMA(as_released, True), inputs["input_ids"], inputs["pixel_values"]
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    mask = mma_mask(gaze.tokens(inputs), inputs["attention_mask"], as_released=as_released)
    trained = model(ids, pixel_values=pixels, attention_mask=mask, position_ids=positions).logits
    with gaze.using(mma):
        used = model(**inputs, position_ids=positions).logits
    shown = inputs["attention_mask"].bool()
    torch.testing.assert_close(trained[shown], used[shown], rtol=0, atol=1e-5)


def test_right_padding_equals_left_padding(model, gaze, inputs):
    with gaze.using(TRAINED):
        ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
        left = model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits[:, -1]
        shift = (mask == 0).sum(1).tolist()
        ids, mask = (torch.stack([x.roll(-s) for x, s in zip(t, shift, strict=True)]) for t in (ids, mask))
        logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    torch.testing.assert_close(left, logits[torch.arange(3), mask.sum(1) - 1], rtol=0, atol=1e-5)


# Training ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conversations(gaze):
    """Two samples as a training set has them: one turn, and two turns about two images."""

    def sample(images, questions):
        ids, labels = [], []
        for turn, question in enumerate(questions):
            prompt = gaze.inputs([images if turn == 0 else None], [question])["input_ids"][0].tolist()
            prompt = prompt[1:] if turn else prompt
            ids += [*prompt, 300, 301, 2]
            labels += [IGNORED] * len(prompt) + [300, 301, 2]
        return {"input_ids": ids, "labels": labels}

    return [sample(picture(1), QUESTIONS[:1]), sample([picture(2), picture(3)], QUESTIONS[:2])]


def collate(features):
    length = max(len(f["input_ids"]) for f in features)

    def padded(name, value):
        return torch.tensor([f[name] + [value] * (length - len(f[name])) for f in features])

    ids = padded("input_ids", 3)
    return {"input_ids": ids, "labels": padded("labels", IGNORED), "attention_mask": (ids != 3).long()}


def test_the_collator_opens_the_first_question(gaze, conversations):
    batch = MutualCollator(collate, first_turn(gaze))(conversations)
    roles = first_turn(gaze)(collate(conversations))
    assert batch["attention_mask"].dtype == torch.bool
    for row, sample in enumerate(conversations):
        length = len(sample["input_ids"])
        mask = batch["attention_mask"][row, 0, :length, :length]
        opened = mask & ~torch.ones_like(mask).tril()
        assert opened.any(0).tolist() == [
            r in (P, Q) and j > 4 for j, r in enumerate(roles.roles[row, :length])
        ]
        assert opened.any(1).tolist() == [r == I for r in roles.roles[row, :length]]
    first = int((collate(conversations)["labels"][1] != IGNORED).nonzero()[0])
    assert (roles.roles[1, first : len(conversations[1]["input_ids"])] == O).all()


def test_the_loss_of_the_first_answer_has_no_gradient_at_the_second_question(model, gaze, conversations):
    batch = MutualCollator(collate, first_turn(gaze))(conversations[1:])
    answers = (batch["labels"][0] != IGNORED).nonzero().flatten()
    labels = torch.full_like(batch["labels"], IGNORED)
    labels[0, answers[:3]] = batch["labels"][0, answers[:3]]
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    pixels = gaze.inputs([[picture(2), picture(3)]], QUESTIONS[:1])["pixel_values"]
    out = model(
        inputs_embeds=embeddings, pixel_values=pixels, attention_mask=batch["attention_mask"], labels=labels
    )
    (gradient,) = torch.autograd.grad(out.loss, embeddings)
    reached = gradient[0].abs().amax(-1) > 0
    text = [j for j in range(int(answers[0])) if batch["input_ids"][0, j] != model.config.image_token_id]
    assert reached[text].all()
    assert not reached[answers[2] :].any()


def test_labels_on_the_prompt_are_refused(gaze, conversations):
    unmasked = [{**c, "labels": c["input_ids"]} for c in conversations]
    with pytest.raises(InputError, match="sample 0: the labels begin at token 0"):
        MutualCollator(collate, first_turn(gaze))(unmasked)
    exact = first_turn(gaze)(collate(conversations))
    with pytest.raises(InputError, match="sample 0 has a label at position 0, a SYSTEM token"):
        MutualCollator(collate, lambda batch: exact)(unmasked)
    one = [dict(c) for c in conversations]
    one[1]["labels"] = [x if i != 140 else 7 for i, x in enumerate(one[1]["labels"])]
    with pytest.raises(InputError, match="sample 1 has a label at position 140"):
        MutualCollator(collate, lambda batch: exact)(one)


def test_a_batch_without_labels_is_refused(gaze, conversations):
    collator = MutualCollator(lambda f: {"input_ids": collate(f)["input_ids"]}, first_turn(gaze))
    with pytest.raises(InputError, match="no labels"):
        collator(conversations)
