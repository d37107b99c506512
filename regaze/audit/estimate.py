"""How long an audit takes, by the seconds of a few of its answers, before the rest are asked.

The answers that are timed are stored in the journals of the runs, so that none is generated twice.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regaze.audit.questions import Questions, prompts_of
from regaze.eval.benchmarks.common.base import cluster_of, with_items
from regaze.eval.comparison.conditions import PLAIN
from regaze.eval.comparison.control_plan import ControlPlan, Controls, control_label
from regaze.eval.run.asking import Asker
from regaze.eval.run.journal import read_batches
from regaze.eval.run.requests import Method
from regaze.eval.run.tasks import EvalTask
from regaze.eval.tuning.grids import Trial


@dataclass(frozen=True)
class Amount:
    """What one half of an audit of a model takes.

    Attributes:
        answers: their number. seconds: of generation.
    """

    answers: int
    seconds: float


@dataclass
class Estimator:
    """Estimates of one model's audit.

    Attributes:
        asked: the questions. trials: of the methods. tuned, tested: what asks in the folder of either half.
        controls: those of the tested half. offsets: trials of one of them.
    """

    asked: Questions
    trials: Mapping[str, tuple[Trial, ...]]
    tuned: Asker
    tested: Asker
    controls: Controls
    offsets: Sequence[Trial] = ()

    def amounts(self) -> dict[str, Amount]:
        """{"tuned", "tested"}: the answers of either half, also those that are there, and their seconds.

        Controls of a method are taken to be as slow as the method; which texts a control of their length is
        needed for shows later.
        """
        with self.tuned, self.tested:
            slower = self._slowness()
            plain = {name: self._seconds(self.tested, task, None) for name, task in self._tested().items()}
            tuning = self._seconds(self.tuned, self.asked.tuned, None)
        rows = len(prompts_of(self.asked.tuned.benchmark))
        per_answer = 1 + sum(slower[label] * len(trials) for label, trials in self.trials.items())
        per_answer += len(self.offsets)
        conditions = 1 + sum(map(len, self.trials.values())) + len(self.offsets)
        tuned = Amount(rows * conditions, rows * tuning * per_answer)
        answers, seconds = 0, 0.0
        asked: set[Hashable] = set()
        for name, task in self._tested().items():
            costs = [1.0, *slower.values(), *self._controls(name, task, slower)]
            new = prompts_of(task.benchmark) - asked
            asked |= new
            answers += len(new) * len(costs)
            seconds += len(new) * plain[name] * sum(costs)
        return {"tuned": tuned, "tested": Amount(answers, seconds)}

    def _tested(self) -> dict[str, EvalTask]:
        damage = self.asked.damage
        return {**self.asked.tested, **({damage.benchmark.name: damage} if damage else {})}

    def _slowness(self) -> dict[str, float]:
        """How many times slower than the plain model each method is; 1 where it cannot be asked."""
        task = self.asked.tuned
        plain = self._seconds(self.tuned, task, None)
        methods = {
            label: self._seconds(self.tuned, task, each[0].method) for label, each in self.trials.items()
        }
        return {label: seconds / plain if seconds and plain else 1.0 for label, seconds in methods.items()}

    def _controls(self, name: str, task: EvalTask, slower: Mapping[str, float]) -> Iterable[float]:
        """The slowness of each control of the methods on a benchmark."""
        wanted = self.controls.benchmarks
        if task is self.asked.damage or (wanted is not None and name not in wanted):
            return []
        methods = {label: trials[0].method for label, trials in self.trials.items()}
        options, given = task.generate_kwargs, self.controls.general
        controls = ControlPlan.of_methods(task.benchmark.items, methods, options, given)
        general = {control_label(control, "") for control in given}
        owners = {control: label for label, names in controls.of.items() for control in names}
        return [1.0 if control in general else slower[owners[control]] for control in controls.controls]

    def _seconds(self, asker: Asker, task: EvalTask, method: Method | None) -> float:
        """Seconds per answer on the first scene; 0 where the method cannot be asked."""
        benchmark = task.benchmark
        scene = cluster_of(benchmark, benchmark.items[0])
        items = [item for item in benchmark.items if cluster_of(benchmark, item) == scene]
        few = replace(task, benchmark=with_items(benchmark, items))
        label = PLAIN if method is None else str(method.to_dict()["method"])
        answers = asker.answers({label: asker.ask(few, label, method, label)}).get(label)
        return 0.0 if answers is None else answers.cost.seconds / len(items)


def seconds_done(folder: Path) -> float:
    """Seconds of generation that the journals of a folder hold."""
    return sum(batch.cost["seconds"] for batch in read_batches(folder))
