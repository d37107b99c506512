"""How results show themselves: a `repr` of one line, a table in a notebook, a pandas DataFrame.

A class takes `__repr__ = short_repr` where its fields are tensors or long, and is `Tabular` where it has
columns of numbers. Nothing here imports what is not needed before something is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from regaze.errors import RegazeError
from regaze.visible import html_environment, one_line, visible

if TYPE_CHECKING:
    import pandas

#: Rows of a table and characters of a text that are shown.
_ROWS, _CHARACTERS = 24, 60
_TEMPLATE = """\
<table class="regaze">
  <caption style="caption-side: top; text-align: left; white-space: nowrap">{{ title }}</caption>
  {%- if columns %}
  <thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
  {%- endif %}
  <tbody>
  {%- for row in rows %}
    <tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
  {%- endfor %}
  </tbody>
</table>
{%- if left %}
<p>and {{ "{:,}".format(left) }} more rows; <code>to_dataframe()</code> has them all</p>
{%- endif %}
"""


class MissingPandasError(RegazeError, ImportError):
    """A DataFrame was asked for, and pandas is not installed."""


def short_repr(instance: Any) -> str:
    """`Name(field=...)` of a dataclass or named tuple: shapes of tensors, long values shortened."""
    names = getattr(instance, "_fields", None) or [each.name for each in fields(instance) if each.repr]
    shown = ", ".join(f"{name}={brief(getattr(instance, name))}" for name in names)
    return f"{type(instance).__name__}({shown})"


def brief(value: Any) -> str:
    """A value in a few words."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, str):
        return repr(shortened(value))
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        if value and all(type(each) is int for each in value):
            return ranges(value)
        if len(value) > 3:
            return f"<{len(value)} x {type(value[0]).__name__}>"
        inner = ", ".join(map(brief, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if type(value) is dict:
        return "{" + ", ".join(map(repr, islice(value, 4))) + (", ..." if len(value) > 4 else "") + "}"
    text = repr(value)
    return f"<{type(value).__name__}>" if "\n" in text else shortened(text, 4 * _CHARACTERS)


def ranges(numbers: Iterable[int]) -> str:
    """(0, 1, 2, 5) as "[0..2, 5]"."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ]
    parts = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return shortened(f"[{', '.join(parts)}]")


def first_lines(text: str) -> str:
    """The first lines of a long text, and how many more there are."""
    lines = text.splitlines()
    if len(lines) <= _ROWS + 2:  # as many would stand in the note's place
        return text
    left = f"... {len(lines) - _ROWS - 1:,} more lines; to_dataframe() has them all"
    return "\n".join([*lines[: _ROWS + 1], left])


def shortened(text: str, most: int = _CHARACTERS) -> str:
    """A text in one line of at most `most` characters, without unseen ones."""
    text = visible(one_line(text))
    return text if len(text) <= most else f"{text[: most - 1]}…"


@dataclass(frozen=True)
class Summary:
    """What a notebook shows of an object: a title and a table.

    Attributes:
        title: any text. columns: heading -> cells; without headings, `facts` are shown, name -> value.
    """

    title: str
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def html(self) -> str:
        """A table; every text is escaped, and the first rows stand for a long one."""
        rows = list(self.facts.items()) if self.facts else list(zip(*self.columns.values(), strict=True))
        return (
            html_environment("regaze")
            .from_string(_TEMPLATE)
            .render(
                title=shortened(self.title, 4 * _CHARACTERS),
                columns=list(self.columns),
                rows=[[_cell(cell) for cell in row] for row in rows[:_ROWS]],
                left=max(0, len(rows) - _ROWS),
            )
        )


class Displayed:
    """An object that a notebook shows as a table."""

    def _summary(self) -> Summary:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self._summary().html()


class Tabular(Displayed):
    """An object that is a table: `to_dataframe` has every row, a notebook shows the first ones."""

    def table(self) -> dict[str, Sequence[Any]]:
        """Columns of equal length, by name."""
        raise NotImplementedError

    def to_dataframe(self) -> pandas.DataFrame:
        """All rows as a pandas DataFrame. Raises MissingPandasError where pandas is not installed."""
        return dataframe(self.table())

    def _summary(self) -> Summary:
        return Summary(type(self).__name__, self.table())


def dataframe(columns: Mapping[str, Sequence[Any]]) -> pandas.DataFrame:
    """Columns of equal length as a DataFrame. Raises MissingPandasError where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise MissingPandasError(
            "to_dataframe needs pandas, which comes with the extra `eval`: pip install 'regaze[eval]', or "
            "pip install pandas"
        ) from None
    return pandas.DataFrame(dict(columns))


def long_table(axes: Mapping[str, Sequence[Any]], **values: Any) -> dict[str, Sequence[Any]]:
    """Arrays or tensors over common axes as columns: a row for each place, the last axis changing fastest.

    Args:
        axes: name -> the labels along it, in the order of the dimensions.
        values: name -> an array or tensor with these dimensions.
    """
    shape = tuple(len(labels) for labels in axes.values())
    columns: dict[str, Sequence[Any]] = {}
    before, after = 1, math.prod(shape)
    for (name, labels), count in zip(axes.items(), shape, strict=True):
        after = after // count if count else 0
        columns[name] = [label for _ in range(before) for label in labels for _ in range(after)]
        before *= count
    for name, value in values.items():
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} is {list(value.shape)}, its axes are {list(shape)}")
        columns[name] = value.reshape(-1).tolist()
    return columns


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return shortened(str(value), 4 * _CHARACTERS)
