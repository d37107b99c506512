"""What an audit asks: models, methods with their grids, benchmarks, the damage check; read from a file.

A plan is a YAML or JSON file of the form of `AuditPlan`; those of the package lie in `plans/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from regaze.demo.shipped import MODEL_NAMES
from regaze.errors import InputError
from regaze.eval.tuning.grids import Trial, make_trials
from regaze.interventions import registry
from regaze.interventions.controls import YesOffset
from regaze.names import suggestion
from regaze.reading import StrPath, parse_yaml, read_text

FOLDER = Path(__file__).parent / "plans"
#: the benchmark of plain text
TEXT = "perplexity"
#: the control that is tuned as methods are, and what is tried of it
OFFSET, OFFSETS = YesOffset.name, (-1.0, 1.0, -3.0, 3.0, -2.0, 2.0, -0.5, 0.5)
#: Names of models become names of folders.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Label = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AuditedModel(_Checked):
    """A model.

    Attributes:
        load: "demo", "bed", a folder or a hub id. arguments: of `regaze.load`.
        data: where benchmarks find their questions ("demo", "bed", "hub", a folder); None: `load`, where that
            is "demo" or "bed", else what `regaze benchmarks get` has downloaded.
        group: models that are trainings of one, such as several seeds, have the same; None: alone.
    """

    load: Label
    arguments: dict[str, Any] = {}
    data: str | None = None
    group: str | None = None

    @property
    def source(self) -> str | None:
        """Where benchmarks find their questions."""
        return self.data or (self.load if self.load in MODEL_NAMES else None)


class AuditedMethod(_Checked):
    """A method, and the grid that its strength is chosen from.

    Attributes:
        method: its registered name. parameters: those that stay. grid: {parameter: values to try}, the
            weakest first, which is taken of equally good ones.
    """

    method: Label
    parameters: dict[str, Any] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]]

    @property
    def number_of_trials(self) -> int:
        """The number of combinations of the grid."""
        return prod(map(len, self.grid.values()))

    def trials(self, label: str) -> tuple[Trial, ...]:
        """The method at each point of its grid. Raises as `make_trials` and `registry.method_from_dict`."""
        first = {name: values[0] for name, values in self.grid.items()}
        method = registry.method_from_dict({"method": self.method, **self.parameters, **first})
        return make_trials(label, method, self.grid)


class Asked(_Checked):
    """Which questions of a benchmark are asked.

    Attributes:
        options: of the benchmark's constructor. questions: about so many in each half; None: all of it.
        per_image: at most so many about one scene, all of one split; splits take turns. The more scenes, the
            more independent answers: questions that are in several splits would count more than once.
        max_new_tokens: of an answer, where the benchmark sets none.
    """

    options: dict[str, Any] = {}
    questions: Positive | None = None
    per_image: Positive | None = None
    max_new_tokens: Positive = 16


class AuditedBenchmark(Asked):
    """A benchmark that methods are tested on.

    Attributes:
        benchmark: its name in `regaze benchmarks`; None: the name it has in the plan.
        decides: whether a verdict may rest on it; the others are reported only.
    """

    benchmark: Label | None = None
    decides: bool = True


class DamageCheck(Asked):
    """The questions that say whether a method broke the model; no verdict rests on a gain in them.

    Attributes:
        benchmark: its name in `regaze benchmarks`.
        passages: of plain text, whose perplexity under each method is measured, too (`perplexity`); 0: none.
    """

    benchmark: Label = "mmstar"
    passages: Annotated[int, Field(ge=0)] = 0


class AuditPlan(_Checked):
    """An audit.

    Attributes:
        benchmarks: by name; strengths are tuned on the first. Controls are asked on those that decide.
        tuned_questions: about so many of the first on the half that is tuned on; None: as many as are tested.
        damage: the questions that say whether a method broke the model; None: no check, so that no verdict is
            "better".
        seed: decides halves, chosen questions, intervals.
    """

    format: Literal[1] = 1
    name: Name = "audit"
    models: Annotated[dict[Name, AuditedModel], Field(min_length=1)]
    methods: Annotated[dict[Label, AuditedMethod], Field(min_length=1)]
    benchmarks: Annotated[dict[Name, AuditedBenchmark], Field(min_length=1)]
    tuned_questions: Positive | None = None
    damage: DamageCheck | None = DamageCheck()
    seed: Seed = 0
    batch_size: Positive = 16

    @model_validator(mode="after")
    def _is_fair(self) -> AuditPlan:
        numbers = {label: each.number_of_trials for label, each in self.methods.items()}
        if len({*numbers.values()}) > 1:
            each = ", ".join(f"{label} {number}" for label, number in numbers.items())
            raise ValueError(
                f"every method has to have as many trials as the others, but the grids have: {each}"
            )
        if OFFSET in self.methods:
            raise ValueError(f"{OFFSET} is a control of every method; give yours another label")
        if not any(each.decides for each in self.benchmarks.values()):
            raise ValueError("no benchmark decides; set decides: true on those that verdicts may rest on")
        for name in self.of_damage:
            if name in self.benchmarks:
                raise ValueError(f"{name} is of the damage check, and among the benchmarks; ask it once")
        return self

    @property
    def of_damage(self) -> dict[str, Asked]:
        """The benchmarks of the damage check: the questions, and if planned the passages of text."""
        if self.damage is None:
            return {}
        text = {TEXT: Asked(questions=self.damage.passages)} if self.damage.passages else {}
        return {self.damage.benchmark: self.damage, **text}

    @property
    def deciding(self) -> list[str]:
        """The benchmarks that verdicts may rest on."""
        return [name for name, each in self.benchmarks.items() if each.decides]

    @property
    def tuned_on(self) -> str:
        """The benchmark that strengths are chosen on."""
        return next(iter(self.benchmarks))

    def for_model(self, name: str, model: AuditedModel) -> AuditPlan:
        """The plan with this model alone; its name says so."""
        return self.model_copy(update={"name": f"{self.name}-{name}", "models": {name: model}})

    def with_trainings(self, folders: Sequence[str]) -> AuditPlan:
        """The plan with further trainings of its bed, by the folders of their weights.

        Raises:
            InputError: the plan has no bed, or two trainings have one name.
        """
        bed = next((model for model in self.models.values() if model.load == "bed"), None)
        if bed is None:
            raise InputError(
                f"the plan {self.name} audits no bed, so that there are no other trainings of it"
            )
        bed = bed if bed.group else bed.model_copy(update={"group": "bed"})
        models = {name: bed if model.load == "bed" else model for name, model in self.models.items()}
        for folder in folders:
            name = f"bed-{Path(folder).resolve().name}"
            if name in models:
                raise InputError(f"two trainings are called {name}; give their folders different names")
            models[name] = bed.model_copy(update={"arguments": {**bed.arguments, "weights": folder}})
        return self.model_copy(update={"models": models})

    def extends(self, other: AuditPlan) -> bool:
        """Whether this is the other plan, or that with more models, or with other groups of them."""
        known = all(
            name in self.models and self.models[name].model_copy(update={"group": model.group}) == model
            for name, model in other.models.items()
        )
        return known and self == other.model_copy(update={"models": self.models})

    def trials(self) -> dict[str, tuple[Trial, ...]]:
        """Every method at each point of its grid. Raises UnknownMethodError and as `make_trials`."""
        return {label: each.trials(label) for label, each in self.methods.items()}

    def offsets(self) -> tuple[Trial, ...]:
        """The threshold between yes and no that is a control of every method, in as many trials as these."""
        number = next(iter(self.methods.values())).number_of_trials
        return make_trials(OFFSET, YesOffset(), {"offset": OFFSETS[:number]})


def plan_names() -> list[str]:
    """The plans of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_plan(source: StrPath) -> AuditPlan:
    """A plan of the package by its name, or a YAML or JSON file.

    Raises:
        InputError: there is no such plan or file, or it is no plan; names the field.
    """
    text = str(source)
    path = FOLDER / f"{text}.yaml" if text in plan_names() else Path(source)
    if not path.suffix:
        raise InputError(f"no plan {text!r}{suggestion(text, plan_names())}; or give a file, NAME.yaml")
    content = parse_yaml(read_text(path, "plan "), str(path))
    try:
        return AuditPlan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{path} is no plan of an audit: {where + ': ' if where else ''}{message}"
        ) from error
