"""OPERA against the beam search of transformers, and a search without caches or logarithms."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
import torch
from decoding_checks import check_json
from models import llava_processor, picture, small_var, tiny_llama, tiny_llava, varied

import regaze
from regaze.errors import BadParameterError, CompositionError
from regaze.interventions.opera.beam_search import Beams, BeamSearch, StopCriteria
from regaze.interventions.opera.last_layer import LastLayerAttention
from regaze.interventions.opera.method import OPERA
from regaze.toolkit.model.continuations import Continuations
from regaze.toolkit.prompts.token_map import Role

QUESTION = "Is there a dog in the image?"
#: OPERA that does all it can within a few tokens.
EAGER = {"num_beams": 3, "candidates": 3, "scale": 200.0, "reward_tokens": 3, "threshold": 2}
EAGER |= {"min_position": 0, "max_rollbacks": 2}


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(varied(tiny_llava()), llava_processor())


@pytest.fixture(scope="module")
def text():
    return regaze.wrap(tiny_llama(), llava_processor().tokenizer)


# Ordinary beam search -----------------------------------------------------------------------------------


def stock(gaze, images, question, beams, **options):
    inputs = gaze.inputs([images], [question])
    out = gaze.model.generate(
        **inputs,
        num_beams=beams,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), float(out.sequences_scores[0])


#: Ids that the random models write, so that some beams end.
OPTIONS = [
    {"max_new_tokens": 8},
    {"max_new_tokens": 1},
    {"max_new_tokens": 10, "eos_token_id": [63, 456, 896], "length_penalty": 0.5},
    {"max_new_tokens": 10, "eos_token_id": [54, 896], "early_stopping": True},
    {"max_new_tokens": 10, "eos_token_id": [98, 243, 456, 896], "early_stopping": "never"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "one token", "short", "early", "never early"])
@pytest.mark.parametrize("beams", [2, 5])
def test_without_penalty_it_is_the_beam_search_of_transformers(gaze, text, options, beams):
    many = beams + len(options.get("eos_token_id", [2]))
    identity = OPERA(num_beams=beams, penalty_weight=0.0, max_rollbacks=0)
    loop = OPERA(num_beams=beams, candidates=many, penalty_weight=0.0, threshold=100)
    assert identity.is_identity
    assert not loop.is_identity
    for model, image in ((gaze, [picture(1)]), (text, [])):
        ids, score = stock(model, image, QUESTION, beams, **options)
        for method in (identity, loop):
            (found,) = method.answer(model, [image], [QUESTION], **options)
            assert list(found.ids) == ids
            assert found.score == pytest.approx(score, abs=2e-5)


@pytest.mark.parametrize("kind", ["gaze", "text"])
def test_stock_examples_end_early_somewhere(kind, request):
    """The comparison above reaches answers that end before the limit, and such that do not."""
    gaze, images = request.getfixturevalue(kind), [picture(1)] if kind == "gaze" else []
    left = [
        options["max_new_tokens"] - len(stock(gaze, images, QUESTION, 5, **options)[0]) for options in OPTIONS
    ]
    assert max(left) > 0
    assert min(left) == 0


def test_of_equal_candidates_the_lowest_ids_are_tried(text):
    search = BeamSearch(
        OPERA().rules,
        StopCriteria(torch.tensor([2])),
        SimpleNamespace(logits=torch.zeros(2, 50)),
        None,
        LastLayerAttention(),
    )
    search._forbidden[1] = {0, 3}
    none = torch.zeros(2, 1)
    tokens, log_probs = search._candidates(Beams(none, none, none, none))
    assert tokens.tolist() == [[1, 2, 4, 5, 6]] * 2
    torch.testing.assert_close(log_probs, torch.full((2, 5), -math.log(50)).double(), rtol=0, atol=1e-6)


# The whole search, once more without caches, stacks and logarithms ---------------------------------------


class Naive:
    """OPERA with a full eager forward per candidate, plain products, and states as lists."""

    def __init__(self, gaze, eager, images, question, rules: OPERA, limit: int, ends: tuple[int, ...]):
        self.rules, self.limit, self.ends, self.eager = rules, limit, ends, eager
        self.inputs = gaze.inputs([images], [question])
        self.prompt = self.inputs["input_ids"].shape[1]
        self.image = torch.zeros(self.prompt, dtype=torch.bool)
        if images:
            self.image = gaze.tokens(self.inputs).mask(Role.IMAGE)[0]
        self.seen = {}

    def look(self, answer: tuple[int, ...]):
        """Log-probabilities of what follows, and the normalised attention of the answer's rows."""
        if answer not in self.seen:
            ids = torch.cat([self.inputs["input_ids"], torch.tensor([answer], dtype=torch.int64)], 1)
            inputs = {**self.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with torch.no_grad():
                out = self.eager(**inputs, output_attentions=True, use_cache=False)
            heads = out.attentions[-1][0].double().amax(0)
            rows = heads / heads.sum(-1, keepdim=True)
            self.seen[answer] = out.logits[0, -1].log_softmax(-1).double(), rows[self.prompt :]
        return self.seen[answer]

    def penalty(self, answer):
        rows = self.look(answer)[1]
        local = rows[:, self.prompt :] * self.rules.scale
        scores = [1e-7 * float(local[j:, j].prod()) for j in range(len(answer))]
        place = max(range(len(answer)), key=lambda j: (scores[j], -j))
        if len(answer) <= self.rules.reward_tokens:
            return -float(rows[-1, : self.prompt][self.image].sum()), place
        return scores[place], place

    def run(self):
        beams, states, finished = [((), 0.0, ())], [], []
        tries, forbidden, went_back = Counter(), defaultdict(set), []
        while beams and not (
            len(finished) == self.rules.num_beams
            and beams[0][1] / len(beams[0][0]) <= min(score for score, _ in finished)
        ):
            step = len(beams[0][0])
            states.append((beams, list(finished)))
            pool, histories = [], []
            for answer, total, history in beams:
                log_probs = self.look(answer)[0].clone()
                log_probs[list(forbidden[step])] = -math.inf
                need = self.rules.num_beams + len(self.ends) if step == 0 else 0
                tokens = log_probs.topk(max(self.rules.candidates, need)).indices.tolist()
                judged = [self.penalty((*answer, token)) for token in tokens]
                places = [place for _, place in judged]
                mode = min(p for p in places if places.count(p) == max(map(places.count, places)))
                histories.append((*history, mode))
                penalties = torch.tensor([penalty for penalty, _ in judged])
                shares = (log_probs[tokens] - self.rules.penalty_weight * penalties).log_softmax(0)
                mass = 0.0 if self.rules.as_released else float(log_probs[tokens].exp().sum().log())
                for token, share in zip(tokens, shares.tolist(), strict=True):
                    pool.append((total + mass + share, (*answer, token), histories[-1]))
            target = self.target(histories, tries)
            if target is not None:
                went_back.append(target)
                tries[target] += 1
                forbidden[target] |= {answer[target] for answer, _, _ in states[target + 1][0]}
                forbidden = defaultdict(set, {p: t for p, t in forbidden.items() if p <= target})
                beams, finished = states[target]
                states = states[:target]
                continue
            pool.sort(key=lambda entry: -entry[0])
            going = [entry for entry in pool if entry[1][-1] not in self.ends and step + 1 < self.limit]
            ended = [entry for entry in pool[: self.rules.num_beams] if entry not in going]
            finished += [(total / (step + 1), answer) for total, answer, _ in ended]
            finished = sorted(finished, reverse=True)[: self.rules.num_beams]
            beams = [(answer, total, history) for total, answer, history in going[: self.rules.num_beams]]
        return max(finished), went_back

    def target(self, histories, tries):
        now = [history[-1] for history in histories]
        counts = [history.count(history[-1]) for history in histories]
        if min(counts) <= self.rules.threshold or min(now) < self.rules.min_position:
            return None
        for position in range(min(now) + 1, self.rules.min_position, -1):
            if tries[position] < self.rules.max_rollbacks:
                return position
        return None


@pytest.fixture(scope="module")
def eager():
    """The same weights with eager attention, which shows its weights."""
    image, words = varied(tiny_llava()), tiny_llama()
    image.set_attn_implementation("eager")
    words.set_attn_implementation("eager")
    return {"image": image, "text": words}


RULES = [
    EAGER,
    {**EAGER, "as_released": True, "penalty_weight": 3.0},
    {**EAGER, "scale": 300.0, "max_rollbacks": 1, "candidates": 2, "reward_tokens": 0},
]


@pytest.mark.parametrize(
    ("kind", "rules", "limit"),
    [("image", RULES[0], 6), ("text", RULES[0], 9), ("text", RULES[1], 9), ("text", RULES[2], 9)],
    ids=["image", "text", "as_released", "few candidates"],
)
def test_equals_a_search_by_full_forwards(gaze, text, eager, kind, rules, limit):
    rules, images = OPERA(**rules), [picture(1)] if kind == "image" else []
    model, ends = (gaze if kind == "image" else text), (45,)
    (score, ids), went_back = Naive(model, eager[kind], images, QUESTION, rules, limit, ends).run()
    (found,) = rules.answer(model, [images], [QUESTION], max_new_tokens=limit, eos_token_id=list(ends))
    assert found.ids == ids
    assert found.score == pytest.approx(score, rel=1e-4, abs=1e-4)
    assert list(found.rollbacks) == went_back
    assert went_back


def test_columns_kept_step_by_step_are_those_of_one_full_forward(gaze, eager):
    """Of every live beam, also after beams were re-ordered and a rollback has cut the cache."""
    rules, inputs, probe = OPERA(**EAGER), gaze.inputs([[picture(1)]], [QUESTION]), LastLayerAttention()
    length = inputs["input_ids"].shape[1]
    with torch.inference_mode(), gaze.using(probe):
        rows, image = Continuations(gaze.model, inputs), gaze.tokens(inputs).mask(Role.IMAGE)[0]
        probe.active = True
        search = BeamSearch(rules.rules, StopCriteria(torch.tensor([2]), 12), rows, image, probe)
        search.run()
    assert search.rollbacks
    beams = search._history[-1]
    ids = torch.cat([inputs["input_ids"].expand(len(beams.ids), -1), beams.ids], 1)
    pixels = inputs["pixel_values"].expand(len(ids), -1, -1, -1)
    with torch.no_grad():
        weights = eager["image"](input_ids=ids, pixel_values=pixels, output_attentions=True).attentions[-1]
    weights = weights.double().amax(1)
    local = rules.scale * (weights / weights.sum(-1, keepdim=True))[:, length:, length:]
    for column in range(local.shape[1]):
        expected = local[:, column:, column].log().sum(1)
        torch.testing.assert_close(beams.columns[:, column], expected, rtol=0, atol=1e-4)


# Going back ---------------------------------------------------------------------------------------------


def planted(monkeypatch, column: int):
    """Every answer token from `column` on looks at that answer token alone."""
    taken = LastLayerAttention.take

    def instead(self):
        row = taken(self)
        answer = row[:, planted.prompt :]
        answer[:] = 1e-3
        if answer.shape[1] > column:
            answer[:, column] = 0.9
        return row

    monkeypatch.setattr(LastLayerAttention, "take", instead)


def run(gaze, rules, limit, monkeypatch, column):
    planted.prompt = gaze.inputs([None], [QUESTION])["input_ids"].shape[1]
    planted(monkeypatch, column)
    (found,) = rules.answer(gaze, None, QUESTION, max_new_tokens=limit, eos_token_id=[])
    return found


def test_a_planted_column_makes_the_search_go_back(text, monkeypatch):
    rules = OPERA(**{**EAGER, "threshold": 4, "min_position": 3})
    beams_at = []
    back_to = BeamSearch._roll_back

    def spy(self, target):
        chosen = self._history[target + 1].ids[:, target].tolist()
        beams_at.append((len(self._history) - 1, target, chosen, sorted(self._forbidden[target])))
        beams = back_to(self, target)
        assert max(self._forbidden) == target  # what was forbidden later followed other tokens
        return beams

    monkeypatch.setattr(BeamSearch, "_roll_back", spy)
    # Token 5 wins from its own step on: with tokens 5 to 9 it has won five times. Of the positions 6, 5 and
    # 4 each is tried twice, then nothing is left before `min_position`.
    found = run(text, rules, 12, monkeypatch, 5)
    assert found.rollbacks == (6, 6, 5, 5, 4, 4)
    assert len(found.ids) == 12
    assert [step for step, *_ in beams_at] == [9] * 6
    for first, second in (beams_at[:2], beams_at[2:4], beams_at[4:]):
        assert first[3] == []
        assert set(second[3]) == set(first[2])
        assert not set(second[2]) & set(first[2])  # other tokens were chosen there
    assert found.ids[4] not in set(beams_at[4][2]) | set(beams_at[5][2])


@pytest.mark.parametrize(
    "changes",
    [{"max_rollbacks": 0}, {"threshold": 7}, {"min_position": 6}],
    ids=["never", "not often enough", "too early"],
)
def test_no_way_back(text, monkeypatch, changes):
    rules = OPERA(**{**EAGER, "threshold": 4, "min_position": 3, **changes})
    assert run(text, rules, 12, monkeypatch, 5).rollbacks == ()


def test_the_penalty_decides_among_candidates(text, monkeypatch):
    """The likeliest first token is out where its row makes a strong column; nothing else changes it."""
    plain = OPERA(num_beams=1, penalty_weight=0.0).answer(text, None, QUESTION, max_new_tokens=1)[0]
    taken = LastLayerAttention.take

    def instead(self):
        row = taken(self)
        row[0, -1] = 1e9  # the candidate that comes first
        return row

    monkeypatch.setattr(LastLayerAttention, "take", instead)
    weak = OPERA(num_beams=1, reward_tokens=0, penalty_weight=1e-9)
    strong = OPERA(num_beams=1, reward_tokens=0)
    assert weak.answer(text, None, QUESTION, max_new_tokens=1)[0].ids == plain.ids
    assert strong.answer(text, None, QUESTION, max_new_tokens=1)[0].ids != plain.ids


# Asking -------------------------------------------------------------------------------------------------


def test_a_batch_is_its_singles(gaze):
    rules = OPERA(**EAGER)
    images, questions = [[picture(1)], [picture(2), picture(3)], []], [QUESTION, "What?", "Describe it."]
    together = rules.answer(gaze, images, questions, max_new_tokens=6)
    alone = [
        rules.answer(gaze, [i], [q], max_new_tokens=6)[0] for i, q in zip(images, questions, strict=True)
    ]
    assert [(a.ids, a.score, a.rollbacks) for a in together] == [(a.ids, a.score, a.rollbacks) for a in alone]
    assert gaze.ask(images, questions, method=rules, max_new_tokens=6) == [str(a) for a in together]


def test_one_candidate_keeps_all_beams(text):
    widths = []
    search = OPERA(num_beams=3, candidates=1, max_rollbacks=0)

    class Spy(Continuations):
        def select(self, rows):
            widths.append(len(rows))
            super().select(rows)

    inputs, probe = text.inputs([None], [QUESTION]), LastLayerAttention()
    with torch.inference_mode(), text.using(probe):
        rows = Spy(text.model, inputs)
        probe.active = True
        image = torch.zeros(rows.prompt_length, dtype=torch.bool)
        found = BeamSearch(search.rules, StopCriteria(torch.tensor([2]), 4), rows, image, probe).run()
    assert widths == [4, 3, 3, 3, 3, 3, 3, 0]
    assert len(found.ids) == 4


def test_errors(gaze):
    for wrong in (
        {"num_beams": 0},
        {"candidates": 0},
        {"scale": 0.0},
        {"penalty_weight": -1.0},
        {"window": 0},
        {"threshold": 1},
        {"min_position": -1},
        {"max_rollbacks": -1},
        {"reward_tokens": -1},
    ):
        with pytest.raises(BadParameterError, match=next(iter(wrong))):
            OPERA(**wrong)
    ask = (gaze, None, QUESTION)
    with pytest.raises(BadParameterError, match="OPERA\\(num_beams="):
        OPERA().answer(*ask, num_beams=3)
    with pytest.raises(BadParameterError, match=r"temperature=0\.5"):
        OPERA().answer(*ask, temperature=0.5)
    with pytest.raises(BadParameterError, match="max_new_tokens must be at least 1"):
        OPERA().answer(*ask, max_new_tokens=0)
    with pytest.raises(CompositionError, match=r"outside gaze\.using"), gaze.using(small_var()):
        OPERA().answer(*ask)
    with pytest.raises(CompositionError, match=r"outside gaze\.using"), gaze.recording():
        OPERA().answer(*ask)


def test_json_and_description():
    check_json(OPERA(**EAGER, window=5, as_released=True))
    assert OPERA().to_dict()["method"] == "opera"
    assert not OPERA(penalty_weight=0.0, max_rollbacks=0, as_released=True).is_identity
