"""The batch size changes neither answers nor scores, greedy or sampled, under any method."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from directions import DEMO, ict_directions, nullu_directions, pti_directions, vti_directions
from standins import leftmost, lines, painted

import regaze
from regaze.errors import BadParameterError
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.run.results import finite
from regaze.eval.run.sampling import GumbelNoise, sampling_options
from regaze.interventions import registry

SIZES = (1, 2, 7, 16)
FEW = ("knockout", "var", "vcd")
OTHERS = sorted(set(registry.BUILT_IN) - {*FEW})
MORE = {
    "knockout": {"heads": ((0, 0), (3, 1))},
    "agla": {"relevance": leftmost},
    "degf": {"generator": painted, "description_tokens": 3},
    "halc": {"detector": "demo"},
    "marine": {"detector": "demo"},
    "ict": {"directions": ict_directions(DEMO)},
    "nullu": {"directions": nullu_directions(DEMO)},
    "pti": {"directions": pti_directions(DEMO)},
    "vti": {"directions": vti_directions(DEMO)},
}


@pytest.fixture(scope="module")
def gaze():
    return regaze.wrap(*regaze.load("demo"))


@pytest.fixture(scope="module")
def tasks():
    """Eight questions on two scenes, and two captions."""
    captions = Chair.of_demo(2, max_new_tokens=8)
    return [
        EvalTask(Pope.of_demo(limit=8, splits=["adversarial"]), {"max_new_tokens": 4}),
        EvalTask(captions, {}),
    ]


def outcome(gaze, tasks, methods, folder: Path, size: int, **config):
    """The answers of the plain model and under each of these methods, and the figures of them."""
    results = evaluate(
        gaze,
        tasks,
        methods,
        folder,
        model_name="demo",
        config=EvalConfig(batch_size=size, raise_method_errors=True, **config),
    )
    figures = {
        name: {"plain": asked["plain"]["figures"]}
        | {method: entry["figures"] for method, entry in asked["methods"].items()}
        for name, asked in finite(results)["benchmarks"].items()
    }
    return lines(folder / "answers.jsonl"), figures


def methods(*names):
    return {name: registry.create_method(name, **MORE.get(name, {})) for name in names}


@pytest.mark.parametrize("name", FEW)
def test_answers_and_scores_do_not_depend_on_the_batch_size(gaze, tasks, tmp_path, name):
    found = [outcome(gaze, tasks, methods(name), tmp_path / str(size), size) for size in SIZES]
    for size, other in zip(SIZES[1:], found[1:], strict=True):
        assert other == found[0], size


@pytest.fixture(scope="module")
def others(gaze, tasks, tmp_path_factory):
    """What all other methods give, with two sizes of a batch; the plain model is asked once for all."""
    folder = tmp_path_factory.mktemp("others")
    return [outcome(gaze, tasks, methods(*OTHERS), folder / str(size), size) for size in SIZES[::2]]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_nor_do_they_under_any_other_method(others, name):
    one, seven = (
        (
            [row for row in rows if row["condition"] == name],
            {task: each[name] for task, each in figures.items()},
        )
        for rows, figures in others
    )
    assert len(one[0]) == 10
    assert one == seven


SAMPLED = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.5, "top_p": 0.95}


def test_sampled_answers_depend_on_neither_the_batch_nor_a_stop(gaze, tmp_path):
    tasks = [EvalTask(Chair.of_demo(5, max_new_tokens=8), SAMPLED)]
    whole = [outcome(gaze, tasks, {}, tmp_path / str(size), size) for size in (1, 2, 5)]
    assert whole[0] == whole[1] == whole[2]
    other, _ = outcome(gaze, tasks, {}, tmp_path / "seed", 5, seed=1)
    assert [row["answer"] for row in other] != [row["answer"] for row in whole[0][0]]

    few = [EvalTask(Chair.of_demo(2, max_new_tokens=8), SAMPLED)]
    outcome(gaze, few, {}, tmp_path / "resumed", 5)
    resumed, _ = outcome(gaze, tasks, {}, tmp_path / "resumed", 5)
    assert resumed == whole[0][0]


def test_draws_follow_the_distribution():
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.2, 0.0]]))
    counts = Counter(int(GumbelNoise([seed])(torch.zeros(1, 1), scores).argmax()) for seed in range(4000))
    for token, share in enumerate((0.5, 0.3, 0.2)):
        assert counts[token] / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))
    assert counts[3] == 0


def test_a_row_draws_the_same_beside_any_others():
    scores = torch.randn(3, 50)
    together = GumbelNoise([4, 5, 6])
    alone = GumbelNoise([5])
    for _ in range(3):
        ids = torch.zeros(3, 1)
        torch.testing.assert_close(together(ids, scores)[1], alone(ids[:1], scores[1:2])[0], rtol=0, atol=0)


def test_options_that_do_not_go_with_sampling():
    options = sampling_options({"temperature": 0.7, "top_k": 3, "max_new_tokens": 2}, ["ab" * 16], 0)
    assert options["max_new_tokens"] == 2
    assert options["do_sample"] is False
    assert "temperature" not in options
    assert [type(one).__name__ for one in options["logits_processor"]] == [
        *("TemperatureLogitsWarper", "TopKLogitsWarper", "GumbelNoise"),
    ]
    with pytest.raises(BadParameterError, match=r"sampling: .*temperature"):
        sampling_options({"temperature": -1.0}, [], 0)
    with pytest.raises(BadParameterError, match="neither with beams nor"):
        GumbelNoise([1])(torch.zeros(2, 1), torch.zeros(2, 4))
