"""The first part of a run that tunes: every trial on the questions to tune on, and what is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regaze.eval.comparison.conditions import PLAIN
from regaze.eval.run.answers import answer_rows
from regaze.eval.run.asking import Asked, Asker
from regaze.eval.run.requests import ImageHashes, Method
from regaze.eval.run.tasks import EvalTask
from regaze.eval.tuning.choice import Criterion, best_trial, score_trials
from regaze.eval.tuning.division import Division, divide
from regaze.eval.tuning.grids import Trial, grid_values
from regaze.eval.tuning.tuning import Tuning


@dataclass
class TuningStage:
    """The trials of a run, on questions that are not tested.

    Attributes:
        combinations: all of each grid, by label of the method. trials: those that are run.
        task: the questions to tune on. tested: the tasks with the questions that are left.
        chosen: the chosen methods by label. refused: {label: reason} of methods of which no trial can run.
        results: what results.json has as "tuning". rows: of the file of answers.
    """

    tuning: Tuning
    combinations: Mapping[str, tuple[Trial, ...]]
    trials: Mapping[str, tuple[Trial, ...]]
    task: EvalTask
    tested: tuple[EvalTask, ...]
    division: Division
    criterion: Criterion
    chosen: dict[str, Method] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(
        cls, tuning: Tuning, tasks: Sequence[EvalTask], methods: Mapping[str, Method], hashes: ImageHashes
    ) -> TuningStage:
        """The stage, before anything is asked.

        Raises:
            InputError: grids, split or criterion that do not fit the methods and the first benchmark.
        """
        combinations = tuning.trials_of(methods)
        trials = tuning.drawn(combinations)
        criterion = Criterion.named(tuning.criterion, tasks[0].benchmark)
        benchmarks = [task.benchmark for task in tasks]
        division = divide(benchmarks, split=tuning.split, seed=tuning.seed, identify=hashes.digest)
        tested = zip(tasks, division.tested, strict=True)
        return cls(
            tuning,
            combinations,
            trials,
            replace(tasks[0], benchmark=division.tuning),
            tuple(replace(task, benchmark=benchmark) for task, benchmark in tested),
            division,
            criterion,
        )

    @property
    def conditions(self) -> dict[str, Method | None]:
        """The plain model and every trial, by label."""
        tried = {
            _label(name, trial): trial.method for name, trials in self.trials.items() for trial in trials
        }
        return {PLAIN: None, **tried}

    def describe(self) -> dict[str, Any]:
        """What decides the choice besides answers."""
        return {
            "split": self.tuning.split,
            "seed": self.tuning.seed,
            "criterion": [self.criterion.scorer, self.criterion.figure],
            "benchmark": self.task.benchmark.describe(),
        }

    def run(self, asker: Asker, seed: int) -> None:
        """Ask what is missing, and choose: every process comes to the same choice.

        Args:
            seed: of the intervals.
        """
        asked = {
            label: asker.ask(self.task, f"tuning: {label}", method, f"tuning {label}")
            for label, method in self.conditions.items()
        }
        asker.config.process_group.barrier()  # the choice is by all answers
        answers = asker.answers(asked)
        about, entries = score_trials(self.task.benchmark, answers, self.criterion, seed)
        for label, each in answers.items():
            self.rows += answer_rows(self.task.benchmark, label, each)
        self.results = {
            **self.describe(),
            **about,
            "note": self.division.note,
            "not_used": self.division.left_out,
            "plain": entries[PLAIN],
            "methods": {name: self._choose(name, entries, asked, about["criterion"]) for name in self.trials},
        }

    def _choose(
        self,
        name: str,
        entries: Mapping[str, Mapping[str, Any]],
        asked: Mapping[str, Asked],
        criterion: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Choose a method's parameters; returns what the results have about it."""
        trials = self.trials[name]
        ran = {
            trial.label: entries[_label(name, trial)] for trial in trials if _label(name, trial) in entries
        }
        best = best_trial(trials, ran, criterion)
        if best is None:
            reasons = [asked[_label(name, trial)].refused for trial in trials]
            reason = next((each for each in reasons if each), f"{criterion['figure']} is undefined")
            self.refused[name] = f"no trial can be chosen: {reason}"
        else:
            self.chosen[name] = best.method
        combinations = self.combinations[name]
        return {
            "grid": grid_values(combinations),
            "combinations": len(combinations),
            "trials": [
                {
                    "label": trial.label,
                    "parameters": trial.parameters,
                    "error": asked[_label(name, trial)].refused,
                    **ran.get(trial.label, {}),
                }
                for trial in trials
            ],
            "chosen": None if best is None else best.parameters,
        }


def _label(name: str, trial: Trial) -> str:
    return f"{name} {trial.label}"
