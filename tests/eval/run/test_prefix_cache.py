"""Prefix sharing: the same answers as without, for every method, and no sharing where it would be wrong."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from directions import DEMO, ict_directions, nullu_directions, pti_directions, vti_directions
from models import llava_processor, tiny_llama, tiny_llava
from standins import leftmost, painted
from transformers import AutoModelForCausalLM, MistralConfig

import regaze
from regaze import HeadKnockout
from regaze.demo import scenes
from regaze.errors import UnsupportedModelError
from regaze.eval.cost import Cost
from regaze.eval.run.generate import AnswerGenerator
from regaze.eval.run.prefix_cache import PrefixSharing, obstacle
from regaze.eval.run.requests import AnswerRequest, Condition
from regaze.interventions import registry

WORDS = ["dog", "hot dog", "dining table", "cat", "train", "traffic light", "cup"]


@pytest.fixture(scope="module")
def gaze():
    """The demo model: a random one says the same to everything."""
    return regaze.wrap(*regaze.load("demo"))


@pytest.fixture(scope="module")
def requests():
    """Seven questions of different lengths: four on the first scene, two on the second, one on the third."""
    first, second, third = scenes()[:3]
    asked = [
        (
            first,
            f"Is there a {first.objects[0].category} in the image?\nAnswer the question using a single word.",
        ),
        (first, "Is there a zebra in the image?"),
        (first, "Please describe this image in detail."),
        (first, f"Is there a {first.objects[1].category} in the image?"),
        (second, "Is there a zebra in the image?"),
        (second, "Please describe this image in detail."),
        (third, f"Is there a {third.objects[0].category} in the image?"),
    ]
    return [AnswerRequest(f"{n:032x}", (scene.path,), text) for n, (scene, text) in enumerate(asked)]


def setting(method=None, **options):
    return Condition("model", method, {"max_new_tokens": 12, **options}, 0)


def answers(gaze, requests, *, share, batch_size=7, method=None, **options):
    generator = AnswerGenerator(gaze, setting(method, **options), batch_size=batch_size, share_prefix=share)
    generator.warm_up(requests)
    found, cost = {}, []
    for batch in generator.make_batches(requests):
        for part in generator.answer(batch):
            assert not part.errors, part.errors
            found.update(part.answers)
            cost.append(part.cost)
    return found, cost, generator.sharing.obstacle


def test_answers_are_the_same_and_the_prompts_run_once(gaze, requests):
    apart, dear, _ = answers(gaze, requests, share=False)
    together, cheap, why = answers(gaze, requests, share=True)
    assert why is None
    assert together == apart
    assert len(set(apart.values())) > 3
    assert sum(cost.prefill_tokens for cost in cheap) < 0.7 * sum(cost.prefill_tokens for cost in dear)
    assert sum(cost.tokens for cost in cheap) == sum(cost.tokens for cost in dear)


@pytest.mark.parametrize("method", [None, "pai", "dola", "vcd"])
def test_sharing_changes_no_forwards_per_token(gaze, requests, method):
    """A prefix that is run beforehand is not charged to the method that starts after it."""
    chosen = registry.load_methods()[method]() if method else None
    apart, together = (
        Cost.total((cost.to_dict(), 1.0) for cost in answers(gaze, requests, share=share, method=chosen)[1])
        for share in (False, True)
    )
    assert together.forwards_per_token == apart.forwards_per_token


def test_logits_differ_by_rounding_alone(gaze, requests):
    sharing = PrefixSharing(gaze, None, {})
    images, prompts = [r.images for r in requests], [r.prompt for r in requests]
    split = sharing._split(images, prompts)
    options = {
        "max_new_tokens": 5,
        "output_logits": True,
        "return_dict_in_generate": True,
        "eos_token_id": None,
    }
    found = torch.stack(sharing._generate(split, sharing._with_defaults(options)).logits)
    inputs = gaze.inputs([list(entry) for entry in images], prompts)
    with torch.inference_mode():
        expected = torch.stack(gaze.model.generate(**inputs, **sharing._with_defaults(options)).logits)
    assert (found - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_batches_of_any_size(gaze, requests, batch_size):
    assert (
        answers(gaze, requests, share=True, batch_size=batch_size)[0]
        == answers(gaze, requests, share=False)[0]
    )


def test_questions_of_one_image_meet_in_a_batch(gaze, requests):
    generator = AnswerGenerator(gaze, setting(), batch_size=4)
    assert [
        [r.images for r in batch] for batch in generator.make_batches(requests[::2] + requests[1::2])
    ] == [
        [requests[0].images] * 4,
        [*[requests[4].images] * 2, requests[6].images],
    ]


def everything():
    """Every method with parameters that do something on six layers."""
    more = {
        "knockout": {"heads": ((0, 0), (3, 1))},
        "var": {"sink_dimensions": (3, 7), "tau": 1.6},
        "agla": {"relevance": leftmost},
        "degf": {"generator": painted, "description_tokens": 3},
        "halc": {"detector": "demo"},
        "marine": {"detector": "demo"},
        "ict": {"directions": ict_directions(DEMO)},
        "nullu": {"directions": nullu_directions(DEMO)},
        "pti": {"directions": pti_directions(DEMO)},
        "vti": {"directions": vti_directions(DEMO)},
    }
    for name, cls in registry.load_methods().items():
        yield name, cls(**more.get(name, {}))


@pytest.mark.parametrize(("name", "method"), list(everything()), ids=lambda value: str(value)[:12])
def test_every_method_answers_the_same_with_and_without_sharing(gaze, requests, name, method):
    few = requests[:3]
    apart, _, _ = answers(gaze, few, share=False, method=method, max_new_tokens=3)
    together, _, why = answers(gaze, few, share=True, method=method, max_new_tokens=3)
    assert together == apart
    assert (why is None) == bool(getattr(method, "shares_prefix", ""))


LATE = {
    "adhh": registry.create_method("adhh", threshold=0.05),
    "attnreal": registry.create_method("attnreal", above=1.0, rho=0.0),
    "deco": registry.create_method("deco", alpha=2.0),
    "dola": registry.create_method("dola"),
    "flb": registry.create_method("flb", gamma=1.5, decay=0.5),
    "hgai": registry.create_method("hgai", alpha=1.0),
    "only": registry.create_method("only", gamma=0.35),
    "pai": registry.create_method("pai", gamma=1.0, alpha=0.9),
    "sparc": registry.create_method("sparc", alpha=1.5, tau=0.01),
    "spin": registry.create_method("spin", kept=0.5),
}


@pytest.mark.parametrize(("name", "method"), LATE.items(), ids=list(LATE))
def test_methods_that_begin_with_the_last_row_share_the_plain_prefix(gaze, requests, name, method):
    """Strong enough to change answers, long enough for what they do while they decode."""
    assert method.shares_prefix == "plain"
    longer = {"max_new_tokens": 24}
    apart, dear, _ = answers(gaze, requests, share=False, method=method, **longer)
    together, cheap, why = answers(gaze, requests, share=True, method=method, **longer)
    assert why is None
    assert together == apart
    assert apart != answers(gaze, requests, share=True, **longer)[0]
    assert sum(cost.prefill_tokens for cost in cheap) < 0.7 * sum(cost.prefill_tokens for cost in dear)
    assert answers(gaze, requests, share=True, batch_size=3, method=method, **longer)[0] == apart


@pytest.mark.parametrize(("name", "method"), LATE.items(), ids=list(LATE))
def test_their_logits_differ_by_rounding_alone(gaze, requests, name, method):
    sharing = PrefixSharing(gaze, method, {})
    images, prompts = [r.images for r in requests], [r.prompt for r in requests]
    options = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    with gaze.using(method):
        split = sharing._split(images, prompts)
        found = sharing._generate(split, sharing._with_defaults({**options, "eos_token_id": None}))
        inputs = gaze.inputs([list(entry) for entry in images], prompts)
        with torch.inference_mode():
            expected = gaze.model.generate(
                **inputs, **sharing._with_defaults({**options, "eos_token_id": None})
            )
    assert torch.equal(found.sequences[:, -4:], expected.sequences[:, -4:])
    a, b = torch.stack(found.logits), torch.stack(expected.logits)
    assert torch.equal(a.isfinite(), b.isfinite())
    assert (a - b)[a.isfinite()].abs().max() < 1e-4 * b[b.isfinite()].std()


def test_a_method_with_a_second_context_cannot_take_a_cache_over(gaze, requests):
    assert registry.create_method("pai").shares_prefix == ""
    sharing = PrefixSharing(gaze, None, {})
    sharing._starts_at_last_token = True
    with gaze.using(registry.create_method("vcd")):
        split = sharing._split([r.images for r in requests], [r.prompt for r in requests])
        with pytest.raises(UnsupportedModelError, match="cannot go on as several"):
            sharing._generate(split, sharing._with_defaults({}))


def test_removed_heads_are_removed_from_the_shared_prefix_too(gaze, requests):
    heads = tuple((layer, head) for layer in range(6) for head in range(3))
    method = HeadKnockout(heads=heads)
    together, _, why = answers(gaze, requests, share=True, method=method)
    assert why is None
    assert together == answers(gaze, requests, share=False, method=method)[0]
    assert together != answers(gaze, requests, share=True)[0]
    assert gaze.model.config.text_config._attn_implementation == "sdpa"


def test_text_models_share_the_beginning_of_their_prompts():
    gaze = regaze.wrap(tiny_llama(), llava_processor().tokenizer)
    story = " ".join(["the dog and the cat sat in the kitchen"] * 20)
    asked = [
        AnswerRequest(f"{n:032x}", (), f"{story} what is the {word} doing?") for n, word in enumerate(WORDS)
    ]
    together, cheap, why = answers(gaze, asked, share=True)
    apart, dear, _ = answers(gaze, asked, share=False)
    assert why is None
    assert together == apart
    assert 3 * cheap[0].prefill_tokens < dear[0].prefill_tokens


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_beams": 2}, "generate is given num_beams"),
        ({"no_repeat_ngram_size": 3}, "generate is given no_repeat_ngram_size"),
        ({"cache_implementation": "static"}, "generate is given cache_implementation"),
    ],
)
def test_options_that_look_at_the_prompt_are_obstacles(gaze, requests, options, reason):
    assert obstacle(gaze, None, options) == reason
    found, _, why = answers(gaze, requests[:3], share=True, **options)
    assert why == reason
    assert found == answers(gaze, requests[:3], share=False, **options)[0]


def test_obstacles_that_are_known_in_advance(gaze):
    assert obstacle(SimpleNamespace(), None, {}) == "this is no wrapped model with a processor"
    assert obstacle(gaze, registry.create_method("var"), {}) == "var looks at the whole prompt"
    other = SimpleNamespace(model=copy.deepcopy(gaze.model), processor=gaze.processor)
    other.model.config.text_config.rope_parameters["mrope_section"] = [1, 1, 2]
    assert obstacle(other, None, {}) == "positions have several axes"
    other = SimpleNamespace(model=copy.deepcopy(gaze.model), processor=gaze.processor)
    other.model.generation_config.num_beams = 3
    assert obstacle(other, None, {}).startswith("the model's generation settings ask for beams")


def test_a_sliding_window_is_found_in_the_cache(requests):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(llava_processor().tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        pad_token_id=3,
    )
    gaze = regaze.wrap(AutoModelForCausalLM.from_config(config).eval(), llava_processor().tokenizer)
    asked = [AnswerRequest(r.key, (), r.prompt) for r in requests]
    found, _, why = answers(gaze, asked, share=True)
    assert why == "the cache does not keep every token in every layer"
    assert found == answers(gaze, asked, share=False)[0]


def test_a_model_that_computes_something_else_over_a_prefix_is_caught(requests):
    """A model of which nobody knows that its tokens depend on where the forward began."""
    model = tiny_llava()
    gaze = regaze.wrap(model, llava_processor())

    def odd(module, args, kwargs):
        kwargs["inputs_embeds"] = kwargs["inputs_embeds"] * (1 + kwargs["inputs_embeds"].shape[1] / 50)
        return args, kwargs

    model.get_decoder().register_forward_pre_hook(odd, with_kwargs=True)
    # Prompts of one length, so that the model's quirk is the same for all of them without sharing.
    asked = [
        AnswerRequest(r.key, r.images, "Is there a dog in the image?" + " dog" * n)
        for n, r in enumerate(requests[:2])
    ]
    _, _, why = answers(gaze, asked, share=True)
    assert why == "this model computes something else over a shared prefix"


def test_prompts_that_part_before_the_image_are_not_shared(gaze, requests):
    sharing = PrefixSharing(gaze, None, {})
    reader = gaze.reader
    template = reader.processor.chat_template
    try:
        # A template that puts the question before the image: nothing but the first token is common.
        reader.processor.chat_template = (
            "{% for m in messages %}{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}"
            "{% for c in m.content if c.type == 'image' %}<image>{% endfor %}{% endfor %} ASSISTANT:"
        )
        assert sharing._split([r.images for r in requests], [r.prompt for r in requests]) is None
        found = sharing.answer(
            [r.images for r in requests], [r.prompt for r in requests], {"max_new_tokens": 3}
        )
        assert len(found) == len(requests)
    finally:
        reader.processor.chat_template = template


def test_a_model_that_cannot_continue_from_a_prefix_runs_without(gaze, requests, monkeypatch):
    def refuses(split, options):
        raise NotImplementedError("no caches here")

    generator = AnswerGenerator(gaze, setting(), batch_size=7)
    monkeypatch.setattr(generator.sharing, "_generate", refuses)
    plan = generator.make_batches(requests)
    assert (
        generator.sharing.obstacle
        == "this model cannot go on from a prefix (NotImplementedError: no caches here)"
    )
    assert sorted(r.key for batch in plan for r in batch) == sorted(r.key for r in requests)


def test_image_tokens_that_nobody_knows_are_an_obstacle(gaze, requests):
    other = SimpleNamespace(
        **{name: getattr(gaze, name) for name in ("model", "processor", "reader", "inputs")}
    )
    other.family = SimpleNamespace(image_token_ids=())
    sharing = PrefixSharing(other, None, {})
    sharing.check([r.images for r in requests], [r.prompt for r in requests])
    assert sharing.obstacle == "it is not known where this model's image tokens are"
