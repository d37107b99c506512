"""The questions of an audit: both halves of the scenes, and as many questions of each as the plan says.

Halves are drawn from all questions before any are left out, so that a smaller plan has the same halves.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from regaze.audit.plan import Asked, AuditedModel, AuditPlan
from regaze.eval import catalogue
from regaze.eval.benchmarks.common.base import Benchmark, Item, cluster_of, with_items
from regaze.eval.run.requests import ImageHashes
from regaze.eval.run.tasks import EvalTask
from regaze.eval.tuning.division import divide


@dataclass(frozen=True)
class Questions:
    """What a model is asked.

    Attributes:
        tuned: what strengths are chosen on. tested: by the plan's names. damage: None where none is checked.
        halves: {"tuned", "tested"}: names of the scenes, asked about or not. note: how they were divided.
    """

    tuned: EvalTask
    tested: dict[str, EvalTask]
    damage: EvalTask | None
    halves: dict[str, list[str]]
    note: str

    @property
    def scenes(self) -> dict[str, list[str]]:
        """{"tuned", "tested"}: names of the scenes that are asked about."""
        tested = [task.benchmark for task in self.tested.values()]
        tested += [self.damage.benchmark] if self.damage else []
        return {"tuned": _scenes(self.tuned.benchmark), "tested": sorted(set().union(*map(_scenes, tested)))}


def make_benchmark(name: str, planned: Asked, model: AuditedModel) -> Any:
    """A benchmark of the plan with all of its questions. Raises as `catalogue.make_benchmark`."""
    settings = {
        option: value if isinstance(value, str) else json.dumps(value)
        for option, value in planned.options.items()
    }
    return catalogue.make_benchmark(name, data=model.source, settings=settings)


def choose_questions(plan: AuditPlan, model: AuditedModel, hashes: ImageHashes) -> Questions:
    """Divide the scenes, and take the questions of each half.

    Raises:
        InputError: a benchmark has no questions for this model, or they cannot be divided.
    """
    planned: dict[str, Asked] = {**plan.benchmarks, **plan.of_damage}
    registered = {name: each.benchmark or name for name, each in plan.benchmarks.items()}
    benchmarks = {
        name: _named(make_benchmark(registered.get(name, name), each, model), name)
        for name, each in planned.items()
    }
    division = divide(list(benchmarks.values()), seed=plan.seed, identify=hashes.digest)

    def task(benchmark: Benchmark, asked: Asked) -> EvalTask:
        chosen = take(benchmark, asked, plan.seed)
        return EvalTask(chosen, {"max_new_tokens": asked.max_new_tokens})

    tested = {name: task(each, planned[name]) for name, each in zip(planned, division.tested, strict=True)}
    halves = {
        "tuned": _scenes(division.tuning),
        "tested": _scenes(division.tested[0]),
    }
    damage = tested.pop(plan.damage.benchmark) if plan.damage else None
    first = planned[plan.tuned_on]
    if plan.tuned_questions is not None:
        first = first.model_copy(update={"questions": plan.tuned_questions})
    return Questions(task(division.tuning, first), tested, damage, halves, division.note)


def take(benchmark: Benchmark, planned: Asked, seed: int) -> Benchmark:
    """Questions of scenes in an order by hash, until there are as many as planned.

    A scene's questions come together. With `per_image` they are that many neighbours of one split, which
    mostly have different answers; splits take turns, and so do the places in a scene's list.
    """
    scenes: dict[Hashable, list[Item]] = {}
    for item in benchmark.items:
        scenes.setdefault(cluster_of(benchmark, item), []).append(item)
    chosen: set[str] = set()
    turns: Counter[str] = Counter()
    for items in sorted(scenes.values(), key=lambda items: _place(seed, _scene(items[0]))):
        if planned.questions is not None and len(chosen) >= planned.questions:
            break
        if planned.per_image is None:
            chosen.update(item.key for item in items)
            continue
        split = min((item.split for item in items), key=lambda name: turns[name])
        keys = [item.key for item in items if item.split == split]
        first = planned.per_image * turns[split]
        chosen.update(keys[(first + n) % len(keys)] for n in range(min(planned.per_image, len(keys))))
        turns[split] += 1
    return with_items(benchmark, [item for item in benchmark.items if item.key in chosen])


def prompts_of(benchmark: Benchmark) -> set[Hashable]:
    """Distinct prompts. Each is asked once, however many questions and benchmarks it is of."""
    return {(item.media, benchmark.prompt(item), item.options, item.continuation) for item in benchmark.items}


def _scene(item: Item) -> str:
    """What a person calls the scene; a path would not be the same on another machine."""
    return item.image.name if item.image is not None else item.key


def _scenes(benchmark: Benchmark) -> list[str]:
    return sorted({_scene(item) for item in benchmark.items if item.image is not None})


def _place(*parts: object) -> str:
    """A random place in an order, that depends on the parts alone."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _named(benchmark: Any, name: str) -> Any:
    """The benchmark under the name it has in the plan, so that one may be asked in two ways."""
    if benchmark.name != name:
        object.__setattr__(benchmark, "name", name)
    return benchmark
