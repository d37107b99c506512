"""A second context that is longer than the prompt is not seen from outside: cache, positions, outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import llava_processor, picture, tiny_llama, tiny_llava
from transformers import AutoModelForCausalLM, Gemma3TextConfig, StaticCache

import regaze
from regaze.errors import UnsupportedModelError
from regaze.interventions import ICD
from regaze.toolkit.model.branches import with_prompts
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.prompts.token_map import Role, TokenMap


class Longer(Callback):
    """A branch with `more` tokens before the prompt, whose logits count nothing."""

    def __init__(self, more: int = 7):
        self.more = more

    def branches(self, context):
        ids = [row[keep].tolist() for row, keep in zip(context.prompt_ids(), context.visible, strict=True)]
        prompts = [[*range(5, 5 + self.more), *row] for row in ids]
        longest = max(map(len, prompts))
        roles = torch.full((len(prompts), longest), int(Role.PAD))
        for row, prompt in enumerate(prompts):
            roles[row, longest - len(prompt) :] = Role.QUERY
        return {"longer": with_prompts(context, prompts, TokenMap.from_roles(roles))}

    def combine_logits(self, context):
        return LogitsCombination(1.0, [(0.0, context.logits("longer"))])


def gemma(**changes: Any) -> Any:
    options = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(Gemma3TextConfig(**{**options, **changes})).eval()


MODELS = {
    "full": tiny_llama,
    "short window": gemma,
    "window between": lambda: gemma(sliding_window=17),
    "long window": lambda: gemma(sliding_window=40),
}
GREEDY = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture
def prompt():
    """Two rows, the second padded on the left."""
    ids = torch.randint(15, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, :3] = mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def next_turn(model: Any, first: Any, prompt: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    """Logits of a second turn of five tokens over the cache of the first."""
    more = torch.randint(15, 40, (2, 5), generator=torch.Generator().manual_seed(1))[: len(first.sequences)]
    ids = torch.cat([first.sequences, more], 1)
    new = ids.shape[1] - prompt["input_ids"].shape[1]
    mask = torch.cat([prompt["attention_mask"], torch.ones(len(ids), new, dtype=torch.int64)], 1)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=first.past_key_values,
        max_new_tokens=3,
        **options,
        **GREEDY,
    )
    return torch.stack(out.logits)


def same_cache(found: Any, plain: Any) -> None:
    assert type(found) is type(plain)
    assert int(found.get_seq_length()) == int(plain.get_seq_length())
    for one, other in zip(found.layers, plain.layers, strict=True):
        assert one.__dict__.keys() == other.__dict__.keys()
        full = getattr(other, "cumulative_length_int", 0) >= getattr(other, "max_cache_len", 1)
        for name, value in other.__dict__.items():
            if full and name == "cumulative_length":  # of no use any more: the counter beside it goes on
                continue
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(one.__dict__[name], value, rtol=1e-4, atol=1e-4)
            else:
                assert one.__dict__[name] == value, name


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_handed_back_is_the_plain_models(kind, cache, prompt):
    model = MODELS[kind]()
    gaze = regaze.wrap(model, llava_processor().tokenizer)
    options = {"max_new_tokens": 4, **GREEDY}

    def run() -> Any:
        if cache == "static":
            options["past_key_values"] = StaticCache(config=model.config, max_cache_len=30)
        return model.generate(**prompt, **options)

    plain = run()
    with gaze.using(Longer()):
        inside = run()
        assert torch.equal(inside.sequences, plain.sequences)
        assert int(inside.past_key_values.get_seq_length()) == 12
    same = run()
    same_cache(same.past_key_values, plain.past_key_values)
    same_cache(inside.past_key_values, plain.past_key_values)
    want = next_turn(model, plain, prompt)
    torch.testing.assert_close(next_turn(model, inside, prompt), want, rtol=1e-4, atol=1e-4)
    with gaze.using(Longer()):  # a whole conversation inside the block
        again = run()
        torch.testing.assert_close(next_turn(model, again, prompt), want, rtol=1e-4, atol=1e-4)
        assert int(again.past_key_values.get_seq_length()) == int(plain.past_key_values.get_seq_length())
    same_cache(again.past_key_values, plain.past_key_values)


def test_a_mask_of_the_users_own_holds_in_later_steps(prompt):
    """The second turn hides a token of the first."""
    model = tiny_llama()
    prompt = {name: value[:1] for name, value in prompt.items()}
    steps = torch.randint(15, 40, (1, 4), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(1, 13, dtype=torch.int64)
    mask[0, [2, 10]] = 0
    positions = torch.arange(9, 13)[None]

    def run() -> torch.Tensor:
        with torch.no_grad():
            cache = model(**prompt).past_key_values
            return model(steps, attention_mask=mask, position_ids=positions, past_key_values=cache).logits

    plain = run()
    with regaze.wrap(model, llava_processor().tokenizer).using(Longer()):
        torch.testing.assert_close(run(), plain, rtol=1e-4, atol=1e-4)


def test_outputs_and_records_have_the_users_columns(prompt):
    model = tiny_llama()
    gaze = regaze.wrap(model, llava_processor().tokenizer)
    tokens = TokenMap.from_roles(torch.where(prompt["attention_mask"] == 1, int(Role.QUERY), int(Role.PAD)))
    wanted = {"rows": "all", "slices": "all", "entropy": True, "top1": True}

    def run() -> Any:
        with gaze.recording(tokens=tokens, **wanted) as record:
            out = model.generate(**prompt, max_new_tokens=3, output_hidden_states=True, **GREEDY)
        return out, record[0]

    (plain, alone), both = run(), None
    with gaze.using(Longer(), tokens=tokens):
        out, both = run()
    for one, other in zip(out.hidden_states, plain.hidden_states, strict=True):
        for a, b in zip(one, other, strict=True):
            real = prompt["attention_mask"].bool() if a.shape[1] > 1 else torch.ones(2, 1, dtype=torch.bool)
            torch.testing.assert_close(a[real], b[real], rtol=1e-4, atol=1e-4)
    for name in ("masses", "slices", "entropy", "top_column", "row_position", "row_active", "input_ids"):
        torch.testing.assert_close(getattr(both, name), getattr(alone, name), rtol=1e-4, atol=1e-4)
    assert torch.equal(both.tokens.roles, alone.tokens.roles)
    assert both.text == alone.text


def test_icd_on_an_image(prompt):
    model = tiny_llava()
    gaze = regaze.wrap(model, llava_processor())
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    with gaze.using(ICD(alpha=1e-9, beta=0.0)):
        found = model.generate(**inputs, max_new_tokens=4, **GREEDY)
        length = found.past_key_values.get_seq_length()
    plain = model.generate(**inputs, max_new_tokens=4, **GREEDY)
    assert length == plain.past_key_values.get_seq_length()
    same_cache(found.past_key_values, plain.past_key_values)
    want, got = next_turn(model, plain, inputs), next_turn(model, found, inputs)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_quantised_cache_is_refused(prompt):
    pytest.importorskip("optimum.quanto")
    model = tiny_llama()
    quantised = {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4}}
    gaze = regaze.wrap(model, llava_processor().tokenizer)
    with gaze.using(Longer()), pytest.raises(UnsupportedModelError, match="quantised cache"):
        model.generate(**prompt, max_new_tokens=2, **quantised)
