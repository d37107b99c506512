"""HALC: its fields, pairs, words and candidates, and whole answers against a decoding without caches."""

from __future__ import annotations

import math
import re

import pytest
import torch
from decoding_checks import check_json
from models import llava_processor, logits_of, picture, small_var, tiny_llava, varied
from standins import spotted
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

import regaze
import regaze.demo
from regaze.errors import BadParameterError, CompositionError, InputError, ModelNotFoundError
from regaze.interventions.controls import RandomBoxes
from regaze.interventions.divergences import jensen_shannon, reversed_jensen_shannon
from regaze.interventions.halc import HALC
from regaze.interventions.halc.contrast import contrasted, furthest_pairs
from regaze.interventions.halc.fields import centre_of, crops, growing_fields, released_fields
from regaze.interventions.halc.matching import match
from regaze.interventions.halc.words import ObjectWord, ObjectWords
from regaze.toolkit.prompts.content_words import find_tagger

IMAGES, QUESTIONS = [picture(1), picture(2)], ["What?", "Is there a dog in the image?"]


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(varied(tiny_llava()), llava_processor())


@pytest.fixture(scope="module")
def demo():
    return regaze.wrap(*regaze.load("demo"))


# Fields -------------------------------------------------------------------------------------------------


def near(*wanted):
    return [pytest.approx(box) for box in wanted]


def test_fields_grow_about_the_box():
    box, size = (40.0, 40.0, 60.0, 60.0), (100, 100)
    grown = ((34.0, 34.0, 66.0, 66.0), (24.4, 24.4, 75.6, 75.6))
    wide = (9.04, 9.04, 90.96, 90.96)
    assert list(growing_fields(box, size, 4, 0.6)) == near(box, *grown, wide)
    assert list(released_fields(box, size, 4, 0.6)) == near((46.0, 46.0, 54.0, 54.0), box, *grown)
    assert released_fields(box, size, 2, 3.0)[0] == pytest.approx((48.0, 48.0, 52.0, 52.0))  # not inside out


def test_what_is_cut_at_an_edge_grows_on_about_the_box_or_as_released_about_what_is_left():
    box, size = (0.0, 90.0, 20.0, 100.0), (120, 100)
    assert growing_fields(box, size, 3, 0.6)[2] == pytest.approx((0.0, 82.2, 35.6, 100.0))
    assert released_fields(box, size, 4, 0.6)[3] == pytest.approx((0.0, 83.1, 33.8, 100.0))


def test_crops_have_the_size_of_the_image():
    image = picture(1, 50, 40)
    whole, part, speck = crops(
        image, [(0.0, 0.0, 50.0, 40.0), (10.2, 5.9, 29.5, 30.0), (49.9, 39.9, 50.0, 40.0)]
    )
    assert whole.tobytes() == image.tobytes()
    assert part.size == speck.size == image.size
    assert part.tobytes() == image.crop((10, 5, 30, 30)).resize((50, 40), resample=3).tobytes()
    assert speck.tobytes() == bytes(image.getpixel((49, 39))) * (50 * 40)
    assert centre_of((50, 40)) == pytest.approx((10.0, 8.0, 40.0, 32.0))


# Pairs and contrasts ------------------------------------------------------------------------------------


def test_the_furthest_pair_is_another_where_the_divergence_is_exchanged():
    """True: .1826, .2749, .2633 for the pairs 01, 02, 12; the release's: .2161, .3481, .3616."""
    logits = torch.tensor([[0.7, 0.15, 0.15], [0.15, 0.65, 0.2], [0.1, 0.05, 0.85]]).log() + 3.0
    assert furthest_pairs(logits, 2) == [(0, 2), (1, 2)]
    assert furthest_pairs(logits, 2, as_released=True) == [(1, 2), (0, 2)]
    assert furthest_pairs(logits, 9) == [(0, 2), (1, 2), (0, 1)]
    assert furthest_pairs(torch.zeros(4, 5), 1) == [(0, 1)]


def test_each_pair_is_contrasted_both_ways():
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0], [0.0, 4.0, 3.0, -80.0], [1.0, 1.0, 1.0, 1.0]])
    got = contrasted(logits, [(0, 1), (1, 2)], 0.5)
    want = [[-1.0, 3.5, 3.0, -75.5], [2.0, -1.0, -1.5, 31.0]]
    want += [[1.0, -1.0, -0.5, 41.0], [-0.5, 3.5, 2.5, -80.5]]
    torch.testing.assert_close(got, torch.tensor(want))
    cut = contrasted(logits, [(0, 1)], 0.5, beta=0.3)  # what is improbable in the field that is added
    want = [[-math.inf, 3.5, 3.0, -math.inf], [2.0, -1.0, -math.inf, -math.inf]]
    torch.testing.assert_close(cut, torch.tensor(want))


# Words --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return llava_processor().tokenizer


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("text", "name", "before"),
    [
        ("There is a dog", "dog", "There is a"),
        ("Two dogs", "dog", "Two"),
        ("Two buses", "bus", "Two"),
        ("A hot dog", "hot dog", "A"),
        ("A Wine glass", "wine glass", "A"),
        ("dog", "dog", ""),
        ("ßß İ dog", "dog", "ßß İ"),
        ("A hotdog", None, ""),
        ("A dog is", None, ""),
        ("A doge", None, ""),
    ],
)
def test_the_longest_name_that_an_answer_ends_in(tokenizer, text, name, before):
    words = ObjectWords(tokenizer, ("dog", "hot dog", "wine glass", "bus"), "function-words")
    ids = ids_of(tokenizer, text)
    want = None if name is None else ObjectWord(name, len(ids_of(tokenizer, before)) if before else 0)
    assert words.last(ids) == want


def test_without_names_it_is_any_word_with_content(tokenizer):
    words = ObjectWords(tokenizer, (), "function-words")
    ids = ids_of(tokenizer, "There is a curious zebra")
    found = words.last(ids)
    assert found.name == "zebra"
    assert tokenizer.decode(ids[: found.start]).strip() == "There is a curious"
    assert words.last(ids_of(tokenizer, "There is a")) is None
    assert words.last(ids_of(tokenizer, "There is a zebra.")) is None


def test_a_word_has_ended_where_the_next_token_begins_another(tokenizer):
    words = ObjectWords(tokenizer, ("dog",), "function-words")
    ids = ids_of(tokenizer, "There is a dog")
    dot = ids_of(tokenizer, "dog.")[-1]
    end, another, rest = tokenizer.eos_token_id, ids_of(tokenizer, "a dog")[-1], 475  # "to", without a space
    assert tokenizer.decode([896, rest]).endswith("to")
    for token, ended in ((dot, True), (end, True), (another, True), (rest, False)):
        assert words.ends_before(ids, token) is ended
    assert not words.ends_before([*ids, dot], another)
    assert not words.ends_before([], another)


# Whole answers ------------------------------------------------------------------------------------------


class Slow:
    """HALC for one prompt, by fresh forwards of whole sequences; words are runs of letters and digits."""

    def __init__(self, gaze, method, image, question):
        self.gaze, self.method, self.image, self.question = gaze, method, image, question
        self.pairs = []

    def logits(self, image, answer):
        inputs = self.gaze.inputs([image], [self.question])
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer], dtype=torch.int64)], 1)
        with torch.no_grad():
            return self.gaze.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]

    def text(self, ids):
        return self.gaze.reader.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def ended(self, ids, token):
        text, added = self.text(ids), self.text([*ids, token])[len(self.text(ids)) :]
        return bool(re.search(r"[^\W_]\Z", text)) and not re.match(r"[^\W_]", added or "a")

    def run(self, tokens):
        ids, decided = [], -1
        while True:
            token = int(self.logits(self.image, ids).argmax())
            word = re.search(r"[^\W_]+\Z", self.text(ids)) if self.ended(ids, token) else None
            if word and find_tagger("function-words")(word[0])[0].tag == "CONTENT":
                start = next(n for n in range(len(ids)) if len(self.text(ids[: n + 1])) > word.start())
                if start > decided:
                    decided, new = start, self.decide(ids[:start], word[0], ids[start:])
                    if new != ids[start:]:
                        ids = ids[:start] + new
                        continue
            if len(ids) >= tokens:
                return ids[:tokens]
            ids.append(token)

    def decide(self, before, word, drafted):
        found = spotted(self.image, [word])["boxes"][0].tolist()
        make = released_fields if self.method.as_released else growing_fields
        fields = make(tuple(found), self.image.size, self.method.fields, self.method.growth)
        rows = [self.logits(part, before) for part in crops(self.image, fields)]
        apart = reversed_jensen_shannon if self.method.as_released else jensen_shannon
        both = [(a, b) for a in range(len(rows)) for b in range(a + 1, len(rows))]
        logs = [row.double().log_softmax(-1) for row in rows]
        both.sort(key=lambda pair: -float(apart(logs[pair[0]], logs[pair[1]])))
        self.pairs.append(tuple(both[: self.method.pairs]))
        best = (-1.0, -1)
        for a, b in both[: self.method.pairs]:
            for one, other in ((b, a), (a, b)):
                scores = rows[one] - self.method.weight * rows[other]
                if self.method.beta and not self.method.as_released:
                    scores[rows[one] < rows[one].max() + math.log(self.method.beta)] = -math.inf
                value, token = scores.softmax(-1).max(-1)
                best = max(best, (float(value), int(token)), key=lambda each: each[0])
        new = [best[1]]
        if new == drafted[:1]:
            return drafted
        while re.search(r"[^\W_]\Z", self.text([*before, *new])):
            token = int(self.logits(self.image, [*before, *new]).argmax())
            if self.ended([*before, *new], token):
                break
            new.append(token)
        return new


METHODS = {
    "default": HALC(detector=spotted),
    "strong": HALC(detector=spotted, fields=3, growth=1.5, pairs=3, weight=0.8, beta=0.0),
    "as released": HALC(detector=spotted, pairs=2, as_released=True),
}


@pytest.mark.parametrize("name", METHODS)
def test_answers_are_those_of_a_decoding_without_caches(gaze, name):
    method, changed = METHODS[name], 0
    answers = method.answer(gaze, IMAGES, QUESTIONS, max_new_tokens=7, eos_token_id=None)
    for image, question, got in zip(IMAGES, QUESTIONS, answers, strict=True):
        slow = Slow(gaze, method, image, question)
        assert list(got.ids) == slow.run(7)
        assert [focus.pairs for focus in got.focuses] == slow.pairs
        changed += sum(focus.word != focus.chosen for focus in got.focuses)
    assert changed >= 2


def test_answers_depend_neither_on_the_batch_nor_on_those_before(gaze):
    method = METHODS["default"]
    together = method.answer(gaze, IMAGES, QUESTIONS, max_new_tokens=6)
    for row in (1, 0):
        (alone,) = method.answer(gaze, IMAGES[row : row + 1], QUESTIONS[row : row + 1], max_new_tokens=6)
        assert alone.ids == together[row].ids
        assert alone.focuses == together[row].focuses
    assert gaze.ask(IMAGES, QUESTIONS, method=method, max_new_tokens=6) == [str(each) for each in together]


def test_without_pairs_it_is_the_plain_model_and_it_leaves_no_trace(gaze):
    inputs = gaze.inputs(IMAGES, QUESTIONS)
    plain, answers = logits_of(gaze.model, inputs), gaze.ask(IMAGES, QUESTIONS, max_new_tokens=6)
    neutral = HALC(pairs=0)
    assert neutral.is_identity
    assert gaze.ask(IMAGES, QUESTIONS, method=neutral, max_new_tokens=6) == answers
    assert gaze.ask(IMAGES, QUESTIONS, method=METHODS["default"], max_new_tokens=6) != answers
    assert torch.equal(logits_of(gaze.model, inputs), plain)


def test_where_nothing_changes_it_is_greedy_decoding(gaze):
    """Words that are no objects, and fields that show the whole image, all of them."""
    plain = gaze.ask(IMAGES, QUESTIONS, max_new_tokens=6)
    assert (
        gaze.ask(IMAGES, QUESTIONS, method=HALC(detector=spotted, objects=("dog",)), max_new_tokens=6)
        == plain
    )

    def everywhere(image, texts):
        return [(0, 0, *image.size)], texts, [1.0]

    whole = HALC(detector=everywhere, weight=0.0)
    answers = whole.answer(gaze, IMAGES, QUESTIONS, max_new_tokens=6)
    assert [str(answer) for answer in answers] == plain
    assert sum(len(answer.focuses) for answer in answers) >= 2


def test_the_end_of_an_answer_and_its_length(gaze):
    method, (image,), (question,) = METHODS["default"], IMAGES[:1], QUESTIONS[:1]
    (long,) = method.answer(gaze, image, question, max_new_tokens=8, eos_token_id=None)
    for tokens in (1, 3):
        (short,) = method.answer(gaze, image, question, max_new_tokens=tokens, eos_token_id=None)
        assert len(short.ids) == tokens
    end = long.ids[3]
    (ended,) = method.answer(gaze, image, question, max_new_tokens=8, eos_token_id=[end])
    assert ended.ids[-1] == end
    assert end not in ended.ids[:-1]


# Boxes and detectors ------------------------------------------------------------------------------------


def several(count):
    """As many boxes for each word, the surest in the middle, the smallest last."""

    def detector(image, texts):
        boxes = [(i, i, 60.0 - 5 * i, 60.0 - 5 * i) for i in range(count)]
        scores = [0.5 + 0.4 * (i == count // 2) for i in range(count)]
        return {"boxes": boxes, "labels": texts * count, "scores": scores}

    return detector


def boxes_of(gaze, **changes):
    (answer,) = HALC(**changes).answer(gaze, IMAGES[0], QUESTIONS[0], max_new_tokens=3)
    return [(focus.box, focus.found) for focus in answer.focuses]


def test_the_surest_box_counts_and_as_released_the_smallest(gaze):
    assert boxes_of(gaze, detector=several(3))[0] == ((1.0, 1.0, 55.0, 55.0), True)
    assert boxes_of(gaze, detector=several(3), as_released=True)[0] == ((2.0, 2.0, 50.0, 50.0), True)
    assert boxes_of(gaze, detector=several(4))[0][1]
    assert boxes_of(gaze, detector=several(4), as_released=True) == []


def test_what_is_not_found_is_looked_for_in_the_middle(gaze):
    middle = (pytest.approx((22.4, 22.4, 89.6, 89.6)), False)
    assert boxes_of(gaze, detector=lambda image, texts: ([], [], []))[0] == middle
    assert boxes_of(gaze, detector=several(1), threshold=0.95)[0] == middle


def test_the_detector_is_asked_for_the_word_in_the_given_image(demo):
    scene, asked = regaze.demo.scenes()[0], []

    def detector(image, texts):
        asked.append((image.size, texts))
        return {"boxes": [], "labels": [], "scores": []}

    detector.names = ("train", "backpack", "person")
    large = scene.image().resize((224, 224))
    prompt = "Please describe this image in detail."
    (answer,) = HALC(detector=detector).answer(demo, large, prompt, max_new_tokens=40)
    assert [size for size, _ in asked] == [(224, 224)] * len(asked)
    assert [text for _, (text,) in asked] == [focus.word for focus in answer.focuses]
    assert {"train", "backpack"} <= {text for _, (text,) in asked}


def test_the_demo_s_words_are_found_where_they_are(demo):
    scene = regaze.demo.scenes()[1]
    prompt = "Please describe this image in detail."
    (answer,) = HALC(detector="demo").answer(demo, scene.image(), prompt, max_new_tokens=40)
    boxes = {thing.category: thing.box for thing in scene.objects}
    assert len(answer.focuses) >= 3
    for focus in answer.focuses:
        assert focus.found is (focus.word in boxes)
        if focus.found:
            assert focus.box == boxes[focus.word]


# The matcher --------------------------------------------------------------------------------------------


def test_a_matcher_chooses_among_whole_words(gaze):
    given = []

    def longest(image, texts):
        given.append((image.tobytes(), texts))
        return [len(text) for text in texts]

    method = HALC(detector=spotted, pairs=6, beta=0.0, weight=0.5, matcher=longest)
    (answer,) = method.answer(gaze, IMAGES[0], QUESTIONS[0], max_new_tokens=6, eos_token_id=None)
    assert given
    assert {image for image, _ in given} == {IMAGES[0].tobytes()}
    assert all(len(texts) == len(set(texts)) >= 2 for _, texts in given)
    first = answer.focuses[0]
    assert max(given[0][1], key=len).endswith(first.chosen)
    shortest = HALC(
        detector=spotted, pairs=6, beta=0.0, weight=0.5, matcher=lambda image, texts: [-len(t) for t in texts]
    )
    (other,) = shortest.answer(gaze, IMAGES[0], QUESTIONS[0], max_new_tokens=6, eos_token_id=None)
    assert min(given[0][1], key=len).endswith(other.focuses[0].chosen)


def test_a_matcher_reads_the_sentence_that_the_word_is_in(demo):
    read = []

    def first(image, texts):
        read.append(texts)
        return [-number for number in range(len(texts))]

    method = HALC(detector="demo", pairs=6, beta=0.0, weight=0.9, matcher=first)
    scene, prompt = regaze.demo.scenes()[2], "Please describe this image in detail."
    (answer,) = method.answer(demo, scene.image(), prompt, max_new_tokens=24)
    assert str(answer).count(".") == 2
    assert all(text.startswith("The image shows a") for text in read[0])
    assert all(text.startswith("There is also a") for text in read[-1])
    assert len(read[-1]) >= 2


def test_clip_by_name(gaze, tmp_path, tokenizer):
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 32, "eos_token_id": 2, "bos_token_id": 1}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(images, tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = processor(text=["A dog", "Two cats"], images=[IMAGES[0]], padding=True, return_tensors="pt")
    with torch.no_grad():
        want = model(**inputs).logits_per_image[0]
    seen = []

    def noted(image, texts):
        seen.append(texts)
        return [0.0] * len(texts)

    settings = {"detector": spotted, "pairs": 6, "beta": 0.0}
    named, noting = (HALC(matcher=each, **settings) for each in (str(tmp_path), noted))
    choose = named._chooser(IMAGES[0], torch.device("cpu"))
    assert choose(["A dog", "Two cats"]) == int(want.argmax())
    named.answer(gaze, IMAGES[0], QUESTIONS[0], max_new_tokens=3)
    noting.answer(gaze, IMAGES[0], QUESTIONS[0], max_new_tokens=3)
    assert seen
    with pytest.raises(ModelNotFoundError, match="cannot load the matcher 'somebody/no-clip'"):
        HALC(matcher="somebody/no-clip", detector=spotted).answer(gaze, IMAGES[0], QUESTIONS[0])


@pytest.mark.parametrize(
    ("given", "message"), [(3, "returned 3"), ([1.0], "each of 2 texts"), ([1.0, math.nan], "finite number")]
)
def test_what_a_matcher_may_not_return(given, message):
    with pytest.raises(InputError, match=message):
        match(lambda image, texts: given, IMAGES[0], ["a", "b"])
    assert match(lambda image, texts: torch.tensor([1.0, 2.0]), IMAGES[0], ["a", "b"]) == [1.0, 2.0]


# What it needs ------------------------------------------------------------------------------------------


def test_what_it_needs(gaze):
    ask = (gaze, IMAGES[0], QUESTIONS[0])
    assert "give `detector`" in HALC().lacks
    with pytest.raises(BadParameterError, match="'halc': give `detector`"):
        HALC().answer(*ask)
    method = METHODS["default"]
    with pytest.raises(InputError, match="one image per question"):
        method.answer(gaze, [IMAGES], QUESTIONS[:1])
    with pytest.raises(InputError, match="one image per question"):
        method.answer(gaze, None, QUESTIONS[0])
    for options in ({"do_sample": True}, {"num_beams": 3}, {"temperature": 0.5}):
        with pytest.raises(BadParameterError, match=f"HALC takes .* got {next(iter(options))}="):
            method.answer(*ask, **options)
    with pytest.raises(CompositionError, match=r"outside gaze\.using"), gaze.using(small_var()):
        method.answer(*ask)
    with pytest.raises(InputError, match="the detector 'demo' knows the truth"):
        HALC(detector="demo", objects=("No", "curious")).answer(*ask, max_new_tokens=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": 1}, "fields must be int >= 2"),
        ({"growth": 0.0}, "growth must be float > 0"),
        ({"pairs": -1}, "pairs must be int >= 0"),
        ({"tagger": "nltk"}, "unknown tagger 'nltk'"),
        ({"matcher": 3}, "matcher must be a CLIP model's name, a function or None"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(BadParameterError, match=message):
        HALC(**changes)


def test_json_and_what_it_has_to_beat():
    check_json(HALC(detector="demo", fields=3, objects=("dog",), matcher="clip", as_released=True))
    assert HALC(detector=spotted, matcher=spotted).to_dict()["matcher"] == "<spotted>"
    assert HALC().controls() == (RandomBoxes(HALC()),)
    assert HALC(pairs=0).controls() == ()
