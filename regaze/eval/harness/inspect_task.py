"""POPE, RePOPE and DASH-B as tasks of Inspect.

inspect eval regaze/repope --model regaze/demo -M method=dola

Questions and scorers are those of `regaze evaluate`; the run, its limits and its log are Inspect's.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig
from inspect_ai.scorer import CORRECT, INCORRECT, Metric, SampleScore, Score, Scorer, accuracy, metric, scorer
from inspect_ai.solver import generate

from regaze.errors import InputError
from regaze.eval.benchmarks import load_class
from regaze.eval.benchmarks.pope.label_sets import Labels
from regaze.eval.catalogue import make_benchmark
from regaze.eval.harness.inspect_model import RegazeModel

__all__ = ["RegazeModel", "dash_b", "pope", "repope"]


@task
def pope(data: str | None = None, images: str | None = None, rule: str = "regaze") -> Task:
    """POPE. `data` and `images` as of `regaze evaluate`; `rule` is the name of a scorer."""
    return _task("pope", data, images, rule)


@task
def repope(data: str | None = None, images: str | None = None, rule: str = "regaze") -> Task:
    """POPE's questions under the labels of POPE and of RePOPE; parameters as of `pope`."""
    return _task("repope", data, images, rule)


@task
def dash_b(data: str | None = None, images: str | None = None, rule: str = "regaze") -> Task:
    """DASH-B; parameters as of `pope`."""
    return _task("dash-b", data, images, rule)


def _task(name: str, data: str | None, images: str | None, rule: str) -> Task:
    _rule(name, rule)
    bench = make_benchmark(name, data=data, images=images)
    samples = []
    for item in bench.items:
        shown = [ContentImage(image=str(path)) for path in item.images]
        asked = ChatMessageUser(content=[*shown, ContentText(text=bench.prompt(item))])
        facts = {"reference": asdict(item.reference) if name == "repope" else item.reference}
        samples.append(Sample(input=[asked], target=item.label, id=item.key, metadata=facts))
    return Task(
        dataset=MemoryDataset(samples, name),
        solver=generate(),
        scorer=yes_no(name, rule),
        metrics=[figures(name, rule)],
        config=GenerateConfig(max_tokens=16, temperature=0.0),
    )


@scorer(metrics=[accuracy()])
def yes_no(benchmark: str, rule: str) -> Scorer:
    """Whether an answer is right; by RePOPE's labels no answer to a question that these leave out is."""

    async def score(state: Any, target: Any) -> Score:
        answer = state.output.completion
        counts = _rule(benchmark, rule).count([_reference(state.metadata)], [answer])[0]
        counts = counts[-1] if counts.ndim == 3 else counts  # of both label sets the corrected one
        return Score(value=CORRECT if counts[0, 0] + counts[1, 1] else INCORRECT, answer=answer)

    return score


@metric(scores="unreduced")
def figures(benchmark: str, rule: str) -> Metric:
    """All figures of a scorer, from the answers."""

    def compute(scores: list[SampleScore]) -> Any:
        if not scores:  # Inspect shows figures before there are answers
            return dict.fromkeys(_rule(benchmark, rule).metrics, float("nan"))
        references = [_reference(score.sample_metadata) for score in scores]
        return _rule(benchmark, rule).score(references, [score.score.answer or "" for score in scores])

    return compute


def _rule(benchmark: str, rule: str) -> Any:
    rules = {each.name: each for each in load_class(benchmark)(()).scorers()}
    if rule not in rules:
        raise InputError(f"{benchmark} has no scorer {rule!r}; there are {', '.join(rules)}")
    return rules[rule]


def _reference(metadata: Any) -> Any:
    reference = metadata["reference"]
    return Labels(**reference) if isinstance(reference, dict) else reference
