"""What an intervention is: a frozen bundle of hyper-parameters and up to two methods."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from regaze.errors import BadParameterError, RegazeError, UnknownParameterError
from regaze.kernels import AttentionEdit
from regaze.toolkit.context import Context


@dataclass(frozen=True)
class Intervention:
    """Base of all interventions: frozen dataclasses whose fields are the paper's hyper-parameters.

    An intervention keeps no state: what it learns from a prompt goes into `context.state(self)`, which lives
    as long as that generation. Therefore no result depends on the sample before.

    Class attributes:
        name: registered name, as used on the command line.
        summary: one line on what it does. source: where it comes from.
        uses_hidden_states: whether `edit` reads `context.hidden_states(layer)` at prefill.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    uses_hidden_states: ClassVar[bool] = False

    def prepare(self, context: Context) -> None:
        """Called once per prompt, before the prefill."""

    def edit(self, layer: int, step: int, context: Context) -> AttentionEdit | None:
        """What to do to `layer` at `step` (0 is the prefill); None leaves the layer to plain attention.

        Called for every layer of every forward: return the same object again where nothing changed, and leave
        the device alone.
        """
        return None

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the method's name and its parameters."""
        return {"method": self.name, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Intervention:
        """Inverse of `to_dict`; lists become tuples. Raises UnknownParameterError, BadParameterError."""
        values = {key: _tuples(value) for key, value in data.items() if key != "method"}
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise UnknownParameterError(
                    f"{cls.name!r} has no parameter {key!r}; it has {', '.join(known) or 'no parameters'}"
                )
        try:
            return cls(**values)
        except RegazeError:
            raise
        except (TypeError, ValueError) as error:
            raise BadParameterError(f"{cls.name!r}: {error}") from None

    def describe(self) -> str:
        """Name, parameters, summary and source, for people."""
        values = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{self.name}({values}): {self.summary} [{self.source}]"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
