"""The figure of an audit for a paper: a row per method, from audit.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from regaze.audit.page import scale
from regaze.audit.verdicts import VERDICTS
from regaze.errors import BadParameterError
from regaze.eval.report.tables import figure_label
from regaze.names import suggestion
from regaze.reading import StrPath

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Shape of a verdict: a triangle up, a square, a diamond, a dot, a triangle down, a cross.
SHAPES = dict(zip(VERDICTS, "^sDovx", strict=True))
_PANELS = 2  #: beside each other
_DASHED = (0, (4, 1.5))
_ROW, _APART = 0.34, 0.17  # inches of a row; how far its two differences are from its middle, in rows


def audit_figure(
    content: Mapping[str, Any],
    *,
    benchmark: str | None = None,
    models: Sequence[str] | None = None,
    path: StrPath | None = None,
) -> Figure:
    """Each method's difference to the plain model and to its best control, with intervals and the verdict.

    Args:
        content: of audit.json (`regaze.audit.results.load_audit`).
        benchmark: whose figures are drawn; None: the first that decides. The verdict is that of all of them.
        models: a panel each; None: all.
        path: where to write it.

    Raises:
        BadParameterError: there is no such model or benchmark, or nothing was measured.
    """
    from regaze.toolkit.plot.style import figure_text, new_figure, style_and_save

    chosen = list(content["models"]) if models is None else list(models)
    for name in chosen:
        if name not in content["models"]:
            raise BadParameterError(f"no model {name!r} in this audit{suggestion(name, content['models'])}")
    shown = _benchmark(content, benchmark)
    labels = list(dict.fromkeys(label for name in chosen for label in content["models"][name]["methods"]))
    across = min(_PANELS, len(chosen))
    down = -(-len(chosen) // across)
    longest = max(len(figure_text(label)) for label in labels)
    figure = new_figure(0.08 * longest + 4.1 * across + 0.3, down * (_ROW * len(labels) + 0.6) + 0.7)
    drawn = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for unused in drawn[len(chosen) :]:
        unused.remove()
    for axes, name in zip(drawn, chosen, strict=False):
        _draw(axes, content["models"][name]["methods"], labels, shown)
        axes.set_title(figure_text(name))
    drawn[0].set_yticks(range(len(labels)), [figure_text(label) for label in labels])
    drawn[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.supxlabel(figure_text(_label(content, shown)), fontsize=9)
    _legend(figure)
    return style_and_save(figure, path)


def _benchmark(content: Mapping[str, Any], name: str | None) -> str:
    tested = {
        benchmark: entry["decides"]
        for model in content["models"].values()
        for method in model["methods"].values()
        for benchmark, entry in method["benchmarks"].items()
    }
    if not tested:
        raise BadParameterError("nothing was measured in this audit: there is nothing to draw")
    if name is None:
        return next((each for each, decides in tested.items() if decides), next(iter(tested)))
    if name not in tested:
        raise BadParameterError(f"no benchmark {name!r} in this audit{suggestion(name, tested)}")
    return name


def _draw(axes: Axes, methods: Mapping[str, Any], labels: Sequence[str], benchmark: str) -> None:
    from regaze.toolkit.plot.style import BLACK, BLUE, GREY, ORANGE, TICK

    for row, label in enumerate(labels):
        method = methods.get(label)
        if method is None:
            continue
        word, entry = method["verdict"], method["benchmarks"].get(benchmark)
        if entry is not None:
            control = entry["controls"].get(entry["best_control"])
            style = {"marker": SHAPES[word], "markersize": 5.5, "color": BLUE}
            _interval(axes, row - (_APART if control else 0), entry, entry, style)
            if control:
                style = {"marker": "|", "markersize": 8, "markeredgewidth": 1.6, "color": ORANGE}
                _interval(axes, row + _APART, control, entry, {**style, "linestyle": _DASHED})
        beside = axes.get_yaxis_transform()
        axes.plot([1.035], [row], marker=SHAPES[word], color=BLUE, ms=5, transform=beside, clip_on=False)
        axes.text(1.065, row, word, transform=beside, va="center", fontsize=TICK - 1, color=BLACK)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.spines["left"].set_visible(False)


def _interval(
    axes: Axes, row: float, compared: Mapping[str, Any], entry: Mapping[str, Any], style: Mapping[str, Any]
) -> None:
    value, ends = compared["difference"], compared["difference_interval"]
    if value is None:
        return
    by = scale(entry)
    if None not in ends:
        line = {"color": style["color"], "linestyle": style.get("linestyle", "-"), "linewidth": 1.3}
        axes.plot([by * end for end in ends], [row, row], **line)
    axes.plot([by * value], [row], **{**style, "linestyle": "none"})


def _label(content: Mapping[str, Any], benchmark: str) -> str:
    entries = [
        method["benchmarks"][benchmark]
        for model in content["models"].values()
        for method in model["methods"].values()
        if benchmark in method["benchmarks"]
    ]
    unit = ", in points" if scale(entries[0]) > 1 else ""
    better = "less" if entries[0]["lower_is_better"] else "more"
    figure = figure_label(entries[0]["metric"])
    return f"{benchmark}: difference in {figure}{unit} ({better} is better), 95 % interval"


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    from regaze.toolkit.plot.style import BLUE, ORANGE, TICK

    handles = [
        Line2D([], [], color=BLUE, label="to the plain model"),
        Line2D([], [], color=ORANGE, linestyle=_DASHED, marker="|", label="to its best control"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=TICK)
