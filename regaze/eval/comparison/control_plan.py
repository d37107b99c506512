"""Which controls the methods have on a benchmark."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.common.yes_no import LABELS
from regaze.interventions.controls import DropLastSentence, NearTie, PreferYes, StopAfter, Variant

#: Controls of every method, on the questions that they are for.
GENERAL = (PreferYes(), NearTie(), DropLastSentence())
#: By which share a method has to shorten texts for a control of their length.
SHORTER = 0.02


@dataclass(frozen=True)
class Controls:
    """Which controls take part in a run, beside the methods' own.

    Attributes:
        general: of every method. benchmarks: the names of those that controls are asked on; None: all.
    """

    general: Sequence[Any] = GENERAL
    benchmarks: Collection[str] | None = None


@dataclass
class ControlPlan:
    """The controls of the methods on one benchmark.

    Attributes:
        controls: by label, each once however many methods have it.
        of: {label of a method: labels of its controls}; such a label may be that of another method.
        answers: the kind of answers, "yes/no" or "texts"; "": another.
    """

    controls: dict[str, Any] = field(default_factory=dict)
    of: dict[str, list[str]] = field(default_factory=dict)
    answers: str = ""

    @classmethod
    def of_methods(
        cls,
        items: Sequence[Item],
        methods: Mapping[str, Any],
        options: Mapping[str, Any],
        general: Sequence[Any] = GENERAL,
    ) -> ControlPlan:
        """Each method's own controls and the general ones, as far as they act on these questions.

        Args:
            methods: by label. options: of `generate`. general: controls of every method.
        """
        plan = cls(answers=kind_of_answers(items))
        for label, method in methods.items():
            named = method.controls() if hasattr(method, "controls") else ()
            plan.of[label] = []
            for control in (*named, *general):
                if control != method and _suits(control, plan.answers, options):
                    plan.add(label, control, methods)
        return plan

    def add(self, label: str, control: Any, methods: Mapping[str, Any]) -> None:
        """A control of the method `label`."""
        name = control_label(control, label)
        if methods.get(name) != control:  # else it is among the methods as it is
            if name in methods or self.controls.get(name, control) != control:
                name += f" of {label}"
            self.controls[name] = control
        self.of[label].append(name)


def kind_of_answers(items: Iterable[Item]) -> str:
    """What answers these questions have: "yes/no", "texts" (which have no single right answer), or "" ."""
    kinds = {
        "yes/no" if item.label in LABELS else "texts" if not (item.label or item.options) else ""
        for item in items
    }
    return kinds.pop() if len(kinds) == 1 else ""


def control_label(control: Any, method: str) -> str:
    """The label of a control of the method with this label: its name, and what is not default in it."""
    if isinstance(control, Variant):
        seed = getattr(control, "seed", 0)
        return f"{control.name} of {method}" + (f" seed={seed}" if seed else "")
    values = {each.name: (getattr(control, each.name), each.default) for each in fields(control)}
    changed = [
        f"{name}={value}" for name, (value, usual) in values.items() if value != usual or usual is MISSING
    ]
    return " ".join([str(control.name), *changed])


def matched_length(plain: Sequence[int], edited: Sequence[int]) -> StopAfter | None:
    """The stop after which plain answers are about as long on average as those of a method.

    Only lengths decide it, not what is right. None where the method's answers are hardly shorter.

    Args:
        plain, edited: numbers of tokens of the answers.
    """
    if not plain or not edited:
        return None
    usual, wanted = (sum(lengths) / len(lengths) for lengths in (plain, edited))
    if wanted > (1.0 - SHORTER) * usual:
        return None

    def mean(tokens: int) -> float:
        return sum(min(length, tokens) for length in plain) / len(plain)

    return StopAfter(tokens=min(range(1, max(plain) + 1), key=lambda tokens: abs(mean(tokens) - wanted)))


def _suits(control: Any, answers: str, options: Mapping[str, Any]) -> bool:
    kind, acts = getattr(control, "answers", ""), getattr(control, "acts_under", None)
    return kind in ("", answers) and not control.is_identity and (acts is None or acts(options))
