"""Hyper-parameters of a method: each field's annotation says what is allowed, in code and in words.

    moved: Fraction = field(default=0.6, metadata={"help": "fraction of the attention that is moved"})

declares a parameter once; pydantic checks its value. Constraints are those of pydantic (`PositiveInt`,
`Annotated[float, Field(ge=1)]`); a `Field(description=...)` replaces the text derived from the annotation.
Several values are a `Sequence`, for which type checkers take a list, too; the method keeps a tuple.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)

from regaze.arguments import in_words, parse_indices
from regaze.errors import BadParameterError


def _layer_numbers(given: Any) -> Any:
    """The numbers of a text such as "0-3,8"."""
    return parse_indices(given) if isinstance(given, str) else given


#: A number in [0, 1], and one in (0, 1].
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
#: (layer, query head) pairs, each of them once, in the given order.
Heads = Annotated[
    Sequence[tuple[NonNegativeInt, NonNegativeInt]],
    AfterValidator(lambda heads: tuple(dict.fromkeys(heads))),
    Field(description="(layer, head) pairs such as ((3, 1), (4, 0))"),
]
#: Layer numbers in ascending order, at least one; as a text, ranges such as "0-3,8".
Layers = Annotated[
    Sequence[NonNegativeInt],
    BeforeValidator(_layer_numbers),
    Field(min_length=1, description="layer numbers from 0 such as (0, 2, 4), or 0-3,8"),
    AfterValidator(lambda layers: tuple(sorted(set(layers)))),
]

_CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Parameter:
    """A field of a dataclass.

    Attributes:
        allowed: what its annotation allows, in words. default: `dataclasses.MISSING` where it is required.
        help: what it means.
    """

    name: str
    allowed: str
    default: Any
    help: str
    adapter: TypeAdapter[Any]

    @classmethod
    def of(cls, name: str, annotation: Any, default: Any = MISSING, help: str = "") -> Parameter:
        """The parameter that an annotation declares."""
        return cls(name, in_words(annotation), default, help, TypeAdapter(annotation, config=_CONFIG))

    def checked(self, value: Any, owner: str) -> Any:
        """The value as the method keeps it: numbers of Python, tuples in place of other collections.

        Raises:
            BadParameterError: a value that the annotation does not allow, or a number that is not finite.
        """
        plain = to_plain(value)
        try:
            valid = self.adapter.validate_python(plain)
        except ValidationError as error:
            infinite = any(each["type"] == "finite_number" for each in error.errors())
            reason = " (not a finite number)" if infinite else ""
            meaning = f". {self.name}: {self.help}" if self.help else ""
            raise BadParameterError(
                f"{owner!r}: {self.name} must be {self.allowed}, got {value!r}{reason}{meaning}"
            ) from None
        # An int given for a float stays an int, so that the JSON form shows what was given.
        return valid if isinstance(valid, tuple) else plain


@cache
def parameters_of(cls: type) -> tuple[Parameter, ...]:
    """The parameters of a dataclass, in the order of its fields."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for each in fields(cls):
        if not each.init:
            continue
        default = each.default if each.default_factory is MISSING else each.default_factory()
        help = each.metadata.get("help", "")
        found.append(Parameter.of(each.name, hints[each.name], default, help))
    return tuple(found)


def to_plain(value: Any) -> Any:
    """Numbers of NumPy and torch as numbers of Python, and collections as tuples, at any depth."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return tuple(map(to_plain, value))
    return value
