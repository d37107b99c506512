"""What every method must satisfy, on a random LLaVA; and goldens."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
from models import context_for, logits_of, picture, tiny_llama
from safetensors.torch import load_file
from torch import Tensor

import regaze
from regaze.eval.run.loglikelihood import loglikelihoods
from regaze.interventions.base import Intervention
from regaze.interventions.contrastive import contrast_logits
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import combine
from regaze.toolkit.model.stack import Branch, Stack
from regaze.toolkit.prompts.token_map import Role, TokenMap

#: One image, two images, none; questions of different length.
PROMPTS: tuple[tuple[Any, str], ...] = (
    (picture(1), "Is there a dog in the image?"),
    ([picture(3), picture(4)], "What?"),
    (None, "Please describe this image in detail."),
)


def inputs_of(gaze: Any, rows: range | slice = slice(None)) -> Any:
    images, questions = zip(*PROMPTS[rows.start : rows.stop], strict=True)
    return gaze.inputs(list(images), list(questions))


def scores(main, negative, alpha, beta, where=None):
    """Contrastive logits: away from `negative`, cut at `beta`."""
    return combine(main, [contrast_logits(main, negative, alpha, beta, where)])


def assert_same_scores(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to a constant per row, with -inf at the same places."""
    assert torch.equal(got.isinf(), want.isinf())
    torch.testing.assert_close(
        got.log_softmax(-1).nan_to_num(neginf=0.0),
        want.log_softmax(-1).nan_to_num(neginf=0.0),
        rtol=0,
        atol=tolerance,
    )


def check_neutral(gaze: Any, *neutral: Intervention) -> None:
    inputs = inputs_of(gaze)
    plain = logits_of(gaze.model, inputs)
    for method in neutral:
        assert method.is_identity
        with gaze.using(method):
            assert torch.equal(plain, logits_of(gaze.model, inputs))


def check_batch(gaze: Any, method: Intervention) -> Tensor:
    """Batch = singles (one image, two, none), and samples leave no trace; [steps, B, V] of the batch."""
    with gaze.using(method):
        together = logits_of(gaze.model, inputs_of(gaze))
        for row in range(len(PROMPTS)):
            alone = logits_of(gaze.model, inputs_of(gaze, slice(row, row + 1)))
            assert_same_scores(together[:, row], alone[:, 0])
    with gaze.using(method):  # the last prompt again, now as the first of its block
        assert torch.equal(alone, logits_of(gaze.model, inputs_of(gaze, slice(2, 3))))
    return together


def check_spares_text(gaze: Any, method: Intervention) -> None:
    """As `check_batch`; prompts with an image are edited, that without one is not, alone to the bit."""
    together, plain = check_batch(gaze, method), logits_of(gaze.model, inputs_of(gaze))
    assert_same_scores(together[:, 2], plain[:, 2])
    for row in (0, 1):
        assert not torch.allclose(together[:, row], plain[:, row], atol=1e-2)
    alone = inputs_of(gaze, slice(2, 3))
    plain = logits_of(gaze.model, alone)
    with gaze.using(method):
        assert torch.equal(logits_of(gaze.model, alone), plain)


def check_padding(gaze: Any, method: Intervention) -> None:
    """Right padding = left padding: the scores of every sample's last token."""
    inputs = inputs_of(gaze)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with gaze.using(method), torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        left = gaze.model(**inputs, position_ids=positions).logits[:, -1]
        shift = (mask == 0).sum(1).tolist()
        ids, mask = (torch.stack([x.roll(-s) for x, s in zip(t, shift, strict=True)]) for t in (ids, mask))
        inputs = {**inputs, "input_ids": ids, "attention_mask": mask}
        logits = gaze.model(**inputs).logits
    assert_same_scores(logits[torch.arange(len(ids)), mask.sum(1) - 1], left)


def check_full_forward(gaze: Any, method: Intervention, steps: int = 5) -> None:
    """Prefill and decode = one forward of prompt and answer."""
    inputs = inputs_of(gaze, slice(0, 2))
    with gaze.using(method), torch.no_grad():
        out = gaze.model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=None,
        )
        answer = out.sequences[:, inputs["input_ids"].shape[1] : -1]
        whole = {
            **inputs,
            "input_ids": out.sequences[:, :-1],
            "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(answer)], 1),
        }
        whole["position_ids"] = (whole["attention_mask"].cumsum(1) - 1).clamp_min(0)
        full = gaze.model(**whole).logits[:, -steps:]
    assert_same_scores(torch.stack(out.logits, 1), full)


def check_choices(gaze: Any, *methods: Intervention) -> None:
    """Beams and samples: the answers chosen have the likelihoods of decoding them token by token."""
    inputs, length = inputs_of(gaze, slice(0, 2)), 4
    options = {"max_new_tokens": length, "eos_token_id": None, "return_dict_in_generate": True}
    beams = {"num_beams": 3, "do_sample": False, "length_penalty": 0.0, "output_scores": True}
    sampling = {"do_sample": True, "top_k": 0, "output_logits": True}
    torch.manual_seed(0)
    for choosing in (beams, sampling):
        with gaze.using(*methods):
            out = gaze.model.generate(**inputs, **options, **choosing)
            answers = out.sequences[:, -length:]
            wanted = loglikelihoods(gaze.model, inputs, answers.tolist())
        if choosing is beams:
            got = out.sequences_scores
        else:
            logprobs = torch.stack(out.logits, 1).float().log_softmax(-1)
            got = logprobs.gather(2, answers[..., None]).sum((1, 2))
        torch.testing.assert_close(got, torch.tensor([each.logprob for each in wanted]), rtol=0, atol=2e-3)


def check_layers(gaze: Any, method: Intervention, layers: set[int], rows: str) -> None:
    """The method changes the attention of just these layers, in the rows that are recorded."""
    slices = []
    for edited in (False, True):
        with gaze.using(method), gaze.recording(slices="all", rows=rows, edited=edited) as record:
            gaze.model(**inputs_of(gaze))
        slices.append(record[0].slices)
    difference = (slices[0] - slices[1]).abs().flatten(1).amax(1)
    assert set((difference > 1e-6).nonzero().flatten().tolist()) == layers


def check_shared_keys(method: Intervention) -> None:
    """Query heads that share keys and values are as good as heads with copies of them."""
    few, many = tiny_llama(), tiny_llama(num_key_value_heads=6)
    weights = few.state_dict()
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = tensor.unflatten(0, (2, -1)).repeat_interleave(3, 0).flatten(0, 1)
    many.load_state_dict(weights)
    ids = torch.randint(10, 90, (1, 20), generator=torch.Generator().manual_seed(0))
    roles = torch.tensor([[Role.SYSTEM] * 2 + [Role.IMAGE] * 9 + [Role.QUERY] * 6 + [Role.TAIL] * 3])
    outputs = []
    for model in (few, many):
        with regaze.wrap(model).using(method, tokens=TokenMap.from_roles(roles)):
            outputs.append(logits_of(model, {"input_ids": ids}))
    assert_same_scores(*outputs)
    assert not torch.allclose(outputs[0], logits_of(few, {"input_ids": ids}), atol=1e-3)


def check_json(method: Intervention) -> None:
    assert type(method).from_dict(json.loads(json.dumps(method.to_dict()))) == method


def answer_of(gaze: Any, inputs: Any, method: Intervention, steps: int = 4) -> tuple[Tensor, Tensor]:
    """Greedy answer [B, T] under a method and the logits that led to it [T, B, V]."""
    with gaze.using(method):
        logits = logits_of(gaze.model, inputs, tokens=steps)
    return logits.argmax(-1).T, logits


def plain_logits(model: Any, inputs: Any, answer: Tensor) -> Tensor:
    """[T, B, V] logits of the unedited model that predict `answer` [B, T], each step by a fresh forward."""
    rows = []
    for step in range(answer.shape[1]):
        ids = torch.cat([inputs["input_ids"], answer[:, :step]], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(answer[:, :step])], 1)
        given = {**inputs, "input_ids": ids, "attention_mask": mask}
        given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            rows.append(model(**given).logits[:, -1])
    return torch.stack(rows)


def text_only(gaze: Any, inputs: Any) -> dict[str, Tensor]:
    """The same prompts (without padding) with their image tokens cut out."""
    kept = inputs["input_ids"] != gaze.model.config.image_token_id
    ids = inputs["input_ids"][kept].view(len(kept), -1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def context_with(logits: Tensor, branches: dict[str, Tensor], method: Intervention) -> tuple[Context, Any]:
    """A context at the end of the prefill of prompts with an image: logits [B, V], also of its branches."""
    roles = torch.tensor([[Role.SYSTEM, Role.IMAGE, Role.IMAGE, Role.QUERY, Role.TAIL]])
    context = context_for(roles.expand(len(logits), -1))
    method.branches(context)
    stacked = {name: Branch() for name in branches}
    context.use_stack(Stack(context.inputs, stacked, context.visible, 0))
    every = torch.cat([logits, *branches.values()])[:, None]
    return context, context.reading_logits(SimpleNamespace(logits=every))


def embedded(model: Any, inputs: Any, answer: Tensor) -> Tensor:
    """[B, L, D] what the language model is given for prompt and answer, image features in their places."""
    seen = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    ids = torch.cat([inputs["input_ids"], answer], 1)
    with torch.no_grad():
        model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    handle.remove()
    return seen[0]


def logits_from(model: Any, embeds: Tensor) -> Tensor:
    """[V] logits that follow a single sequence of embeddings [L, D]."""
    with torch.no_grad():
        return model.lm_head(model.get_decoder()(inputs_embeds=embeds[None]).last_hidden_state[0, -1])


def golden(goldens: Any, method: str, name: str) -> tuple[Any, dict[str, Tensor]]:
    folder = goldens / "methods" / method
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def close_as_goldens_ask(got: Tensor, want: Tensor, atol: float = 2e-6, rtol: float = 1e-5) -> None:
    """-inf at exactly the same places, the rest within the tolerance."""
    assert torch.equal(got.isinf(), want.isinf())
    got, want = got.masked_fill(got.isinf(), 0.0), want.masked_fill(want.isinf(), 0.0)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def span_roles(length: int, start: int, end: int) -> TokenMap:
    """One prompt whose columns start..end-1 are the image."""
    roles = torch.full((1, length), int(Role.QUERY))
    roles[:, :start] = Role.SYSTEM
    roles[:, start:end] = Role.IMAGE
    return TokenMap.from_roles(roles)


def golden_llama(goldens: Any, home: Any) -> Any:
    """The text model of the end-to-end sets of PAI and VCD."""
    import shutil

    from transformers import AutoModelForCausalLM

    folder = goldens / "methods" / "pai"
    shutil.copy(folder / "e2e_config.json", home / "config.json")
    shutil.copy(folder / "e2e_weights.safetensors", home / "model.safetensors")
    return AutoModelForCausalLM.from_pretrained(home).eval()
