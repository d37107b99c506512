"""Run an audit: tune every method on one half of the scenes, test it and its controls on the other.

A model has two folders, each an ordinary run (`regaze.eval.evaluate`) with its journal, results and report:
`MODEL/tuned` with the trials of all methods, `MODEL/tested` with the chosen ones and their controls. So an
audit that was stopped continues where it was, and no answer is generated twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regaze.audit import figures, results
from regaze.audit.across import across
from regaze.audit.estimate import Amount, Estimator, seconds_done
from regaze.audit.page import PAGE, audit_page
from regaze.audit.plan import OFFSET, TEXT, AuditedModel, AuditPlan, read_plan
from regaze.audit.questions import Questions, choose_questions
from regaze.audit.verdicts import RULES, judge, too_many
from regaze.caching import cached_property
from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark
from regaze.eval.comparison.conditions import PLAIN, AnswerSet
from regaze.eval.comparison.control_plan import GENERAL, Controls, kind_of_answers
from regaze.eval.run.answers import read_answers
from regaze.eval.run.asking import Asker
from regaze.eval.run.engines import TransformersEngine
from regaze.eval.run.generate import Model
from regaze.eval.run.requests import ImageHashes, Method
from regaze.eval.run.results import machine, versions
from regaze.eval.run.runner import evaluate, run_folder
from regaze.eval.run.tasks import EvalConfig
from regaze.eval.tuning.choice import Criterion, best_trial, score_trials
from regaze.eval.tuning.grids import Trial
from regaze.progress import Progress, reporting
from regaze.toolkit import load, wrap
from regaze.writing import replace_file

TUNED, TESTED = "tuned", "tested"
#: loads a model of the plan
Load = Callable[[AuditedModel], Model]
#: is told the seconds that are left, by model
Announce = Callable[[Mapping[str, float]], None]


def load_model(model: AuditedModel) -> Model:
    """A model of the plan, wrapped. Raises as `regaze.load`."""
    return wrap(*load(model.load, **model.arguments))


def audit(
    plan: AuditPlan,
    output: str | os.PathLike[str],
    *,
    load: Load = load_model,
    progress: Progress | bool | None = None,
    announce: Announce = lambda seconds: None,
) -> dict[str, Any]:
    """Run a plan; returns what audit.json holds (`results.AuditResults`).

    What the folder already has of this plan is not done again. audit.json and its page are written after
    each model; what an earlier audit in the folder found of others stays until they are done again.

    Args:
        load: loads and wraps a model of the plan.
        progress: as for `regaze.eval.evaluate`, with one label per half of a model.
        announce: called with the seconds that each model is expected to take, when a few answers of each have
            been timed. Of a group the first model stands for all.

    Raises:
        InputError: the folder holds another plan (fewer models are none) or cannot be written, a benchmark
            has no questions for a model. UnknownMethodError, BadParameterError: a method or a grid. What
            loading a model raises.
    """
    folder = Path(output)
    trials = plan.trials()
    hashes = ImageHashes()
    asked = {name: choose_questions(plan, model, hashes) for name, model in plan.models.items()}
    _start(plan, folder)
    load_once = _once(load)
    models: dict[str, Any] = results.earlier_models(folder)
    content: dict[str, Any] = {}
    with reporting(progress) as report:

        def prepare(name: str) -> _AuditedModel:
            gaze = load_once(name, plan.models[name])
            return _AuditedModel(plan, name, gaze, asked[name], trials, folder / name, report)

        announce(_expected(plan, folder, prepare))
        for name in plan.models:
            models[name] = prepare(name).run()
            done = {name: models[name] for name in plan.models if name in models}
            content = results.write(_content(plan, done), folder)
            replace_file(folder / PAGE, audit_page(content))
    return content


def _once(load: Load) -> Callable[[str, AuditedModel], Model]:
    """Loads a model by its name in the plan, and keeps it until another one is loaded."""
    held: dict[str, Model] = {}

    def get(name: str, model: AuditedModel) -> Model:
        if name not in held:
            held.clear()  # before the next one takes its memory
            held[name] = load(model)
        return held[name]

    return get


def _expected(plan: AuditPlan, folder: Path, prepare: Callable[[str], _AuditedModel]) -> dict[str, float]:
    """The seconds that each model still takes."""
    first: dict[str, dict[str, Amount]] = {}
    seconds = {}
    for name, model in plan.models.items():
        kind = f"group {model.group}" if model.group else name
        if kind not in first:
            first[kind] = prepare(name).amounts
        done = {half: seconds_done(folder / name / half) for half in (TUNED, TESTED)}
        seconds[name] = sum(max(0.0, first[kind][half].seconds - done[half]) for half in done)
    return seconds


def _start(plan: AuditPlan, folder: Path) -> None:
    """Write plan.json. Raises InputError where the folder has another plan than this with fewer models."""
    path = folder / results.PLAN
    if path.exists() and not plan.extends(read_plan(path)):
        raise InputError(
            f"{folder} holds the audit of another plan (plan.json); give --output another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, plan.model_dump_json(indent=2) + "\n")


def _content(plan: AuditPlan, models: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": 1,
        "name": plan.name,
        "complete": len(models) == len(plan.models),
        "facts": {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "models": {name: each["about"]["fingerprint"] for name, each in models.items()},
            "seconds": sum(each["seconds"] for each in models.values()),
        },
        "rules": [{"verdict": rule.verdict, "when": rule.when} for rule in RULES],
        "models": models,
        "across": across(plan, models),
    }


@dataclass
class _AuditedModel:
    """One model of an audit."""

    plan: AuditPlan
    name: str
    gaze: Model
    asked: Questions
    trials: Mapping[str, tuple[Trial, ...]]
    folder: Path
    report: Progress

    @cached_property
    def amounts(self) -> dict[str, Amount]:
        """What either half takes, all in all."""
        engine = TransformersEngine(self.gaze)
        fingerprint = engine.describe(self.name)["fingerprint"]
        tuned, tested = (
            Asker(engine, fingerprint, self.folder / half, self._config(), self._bar(f"timing {half}", 1))
            for half in (TUNED, TESTED)
        )
        with run_folder(self.folder / TUNED), run_folder(self.folder / TESTED):
            controls = self._controls(self.offsets[0].method if self.offsets else None)
            return Estimator(self.asked, self.trials, tuned, tested, controls, self.offsets).amounts()

    @cached_property
    def offsets(self) -> tuple[Trial, ...]:
        """Trials of the threshold between yes and no; none where strengths are chosen on other questions."""
        tuned = self.asked.tuned.benchmark
        return self.plan.offsets() if kind_of_answers(tuned.items) == "yes/no" else ()

    def _controls(self, offset: Method | None) -> Controls:
        """The controls of the tested half, where verdicts may rest on them."""
        return Controls((*GENERAL, *([] if offset is None else [offset])), self.plan.deciding)

    def _bar(self, half: str, answers: int) -> Progress:
        """Reports the answers to all benchmarks under all conditions as one sum."""
        parts: dict[str, tuple[int, int]] = {}

        def report(label: str, done: int, total: int) -> None:
            parts[label] = done, total
            done, total = (sum(each) for each in zip(*parts.values(), strict=True))
            self.report(f"{self.name} {half}", done, max(total, answers))

        return report

    def run(self) -> dict[str, Any]:
        """Tune, test, judge; returns what audit.json has about the model."""
        tuned = self._tune()
        chosen, methods = self._choose(tuned)
        offset, about = chosen.pop(OFFSET, None), methods.pop(OFFSET, None)
        tested = self._test(chosen, offset)
        self._add_figures(methods, tested)
        for entry in methods.values():
            entry["verdict"], entry["reason"] = judge(entry)
        return {
            "about": tuned["model"],
            "group": self.plan.models[self.name].group,
            "halves": self.asked.halves,
            "scenes": self.asked.scenes,
            "note": self.asked.note,
            "tuned_on": {**tuned["tuned_on"], "yes_offset": about and about["trials"]},
            "folders": {half: f"{self.name}/{half}" for half in (TUNED, TESTED)},
            "seconds": sum(seconds_done(self.folder / half) for half in (TUNED, TESTED)),
            "methods": methods,
        }

    @property
    def _tried(self) -> dict[str, tuple[Trial, ...]]:
        """What is tried on the half that is tuned on, by label."""
        return {**self.trials, **({OFFSET: self.offsets} if self.offsets else {})}

    def _config(self) -> EvalConfig:
        # A method that fails is a verdict, and no end of the audit.
        return EvalConfig(self.plan.batch_size, self.plan.seed, max_errors=10**9)

    def _tune(self) -> dict[str, Any]:
        """The results of all trials, and what their scores are of as "tuned_on"."""
        task = self.asked.tuned
        conditions: dict[str, Method] = {
            f"{label} {trial.label}": trial.method for label, each in self._tried.items() for trial in each
        }
        run = evaluate(
            self.gaze,
            [task],
            conditions,
            self.folder / TUNED,
            model_name=self.name,
            config=self._config(),
            progress=self._bar(TUNED, self.amounts[TUNED].answers),
        )
        plain = run["benchmarks"][task.benchmark.name]["plain"]["figures"]
        criterion = Criterion().in_figures(plain, task.benchmark)
        scores = plain[criterion["split"]]
        about = {
            "benchmark": task.benchmark.name,
            "metric": criterion["figure"],
            "questions": scores["questions"],
            "plain": scores[criterion["scorer"]]["plain"][criterion["figure"]]["value"],
        }
        return {**run, "tuned_on": about, "criterion": criterion}

    def _choose(self, run: Mapping[str, Any]) -> tuple[dict[str, Method], dict[str, dict[str, Any]]]:
        """The chosen methods by label, and what audit.json has about all methods so far."""
        tried = run["benchmarks"][self.asked.tuned.benchmark.name]["methods"]
        answers = read_answers(self.folder / TUNED)[self.asked.tuned.benchmark.name]
        figure = run["criterion"]["figure"]
        chosen: dict[str, Method] = {}
        methods: dict[str, dict[str, Any]] = {}
        for label, trials in self._tried.items():
            errors = {trial.label: _error(tried[f"{label} {trial.label}"]) for trial in trials}
            ran = self._score(label, [name for name, error in errors.items() if error is None], answers)
            best = best_trial(trials, ran, run["criterion"])
            if best is not None:
                chosen[label] = best.method
            reasons = [error for error in errors.values() if error]
            methods[label] = {
                "method": (best or trials[0]).method.to_dict(),
                "chosen": None if best is None else best.parameters,
                "trials": [
                    {
                        "values": trial.parameters,
                        "score": ran[trial.label]["figures"][figure]["value"] if trial.label in ran else None,
                        "half": TUNED,
                        "error": errors[trial.label],
                    }
                    for trial in trials
                ],
                "error": None if best else next(iter(reasons), f"{figure} is undefined"),
            }
        return chosen, methods

    def _score(self, label: str, ran: Sequence[str], answers: figures.Answers) -> dict[str, Any]:
        """Trials of a method on the questions that all of them and the plain model have answers to."""
        benchmark = self.asked.tuned.benchmark
        conditions = {name: f"{label} {name}" for name in ran} | {PLAIN: PLAIN}
        sets = {name: _answer_set(benchmark, answers, condition) for name, condition in conditions.items()}
        try:
            return score_trials(benchmark, sets, Criterion(), self.plan.seed)[1] if ran else {}
        except InputError:  # no question is left
            return {}

    def _test(self, chosen: Mapping[str, Method], offset: Method | None) -> dict[str, Any]:
        return evaluate(
            self.gaze,
            list(self.asked.tested.values()),
            chosen,
            self.folder / TESTED,
            model_name=self.name,
            config=self._config(),
            progress=self._bar(TESTED, self.amounts[TESTED].answers),
            controls=self._controls(offset),
            damage_check=self.asked.damage,
        )

    def _add_figures(self, methods: Mapping[str, dict[str, Any]], run: Mapping[str, Any]) -> None:
        """Add "benchmarks", "damage" and "cost" to the methods."""
        answers = read_answers(self.folder / TESTED)
        tested = {
            name: figures.Tested(
                task.benchmark,
                run["benchmarks"][name],
                answers[name],
                self.plan.seed,
                name in self.plan.deciding,
            )
            for name, task in self.asked.tested.items()
        }
        text = tested.pop(TEXT, None)
        for label, entry in methods.items():
            found = {name: each.of_method(label) for name, each in tested.items()}
            entry["benchmarks"] = {name: each for name, each in found.items() if each is not None}
            entry["damage"] = figures.damage(run, label, text) if entry["error"] is None else None
            entry["cost"] = figures.cost(run, label)
            refused = [
                run["benchmarks"][name]["methods"][label]["error"]
                for name in self.plan.deciding
                if label in run["benchmarks"][name]["methods"]
            ]
            entry["error"] = entry["error"] or next((reason for reason in refused if reason), None)
        figures.add_corrected([entry["benchmarks"] for entry in methods.values()])


def _error(trial: Mapping[str, Any]) -> str | None:
    """Why a trial cannot be chosen: it raised, or the questions that it has answers to may be a choice."""
    if trial["error"]:
        return str(trial["error"])
    questions = next(iter(trial["figures"].values()))["questions"]
    if not too_many(trial["left_out"], questions):
        return None
    return f"{trial['left_out']} questions were left out, because answers failed"


def _answer_set(benchmark: Benchmark, answers: figures.Answers, condition: str) -> AnswerSet:
    given = [answers.get(item.key, {}).get(condition) for item in benchmark.items]
    failed = {index: "it has no answer" for index, answer in enumerate(given) if answer is None}
    return AnswerSet(tuple(answer or "" for answer in given), failed)
