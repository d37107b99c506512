"""What controls have in common, and variants: a method with one thing of it replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from regaze.errors import BadParameterError
from regaze.interventions.base import Intervention, Method
from regaze.interventions.registry import method_from_dict


class Control:
    """What makes a method a control.

    Class attributes:
        answers: the answers that it is a control for, "yes/no" or "texts"; "": any.
    """

    answers: ClassVar[Literal["", "yes/no", "texts"]] = ""

    def acts_under(self, options: Mapping[str, Any]) -> bool:
        """Whether it can change an answer under these arguments of `generate`."""
        return True


Inner = Annotated[Any, Field(description="a method, as its name or {method, parameters...}")]


@dataclass(frozen=True)
class Variant(Control, Method):
    """Base of controls that are another method with one thing of it replaced.

    Class attributes:
        takes: what kind of method it is for.
    """

    takes: ClassVar[type[Method]] = Method

    of: Inner = field(metadata={"help": "the method that it is a control for"})

    def __post_init__(self) -> None:
        given = {"method": self.of} if isinstance(self.of, str) else self.of
        object.__setattr__(self, "of", method_from_dict(given) if isinstance(given, dict) else given)
        super().__post_init__()
        if not isinstance(self.of, self.takes):
            how = "gaze.using" if self.takes is Intervention else "gaze.ask"
            raise BadParameterError(f"{self.name!r}: `of` must be a method for {how}, got {given!r}")

    @property
    def is_identity(self) -> bool:
        return bool(self.of.is_identity)

    @property
    def lacks(self) -> str:
        lacking: str = self.of.lacks
        return lacking

    @property
    def shares_prefix(self) -> Literal["", "edited", "plain"]:
        shares: Literal["", "edited", "plain"] = self.of.shares_prefix
        return shares

    def to_dict(self) -> dict[str, Any]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"method": self.name, **values, "of": self.of.to_dict()}


@dataclass(frozen=True)
class InterventionVariant(Variant, Intervention):
    """A variant of a method for `gaze.using`. What acts in a model is made for it, by `for_model`."""

    takes: ClassVar[type[Method]] = Intervention

    def for_model(self, config: Any) -> Intervention:
        raise NotImplementedError
