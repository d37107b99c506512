"""What to tune: the grids, the questions to tune on, and the figure that decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regaze.errors import InputError
from regaze.eval.tuning.division import HALF
from regaze.eval.tuning.grids import Grid, Trial, draw_trials, make_trials


@dataclass(frozen=True)
class Tuning:
    """Choose parameters of methods on some images, and report figures of the others (`division.divide`).

    Attributes:
        grids: {label of a method: {parameter: values to try}}; other methods run as they are.
        split: the questions of the first benchmark to tune on: "half" of the images, or the name of a split.
        seed: decides which images are tuned on, and which trials are drawn.
        criterion: the figure that decides, "f1" or with its scorer "harness.f1"; None: the tested figure,
            that is the share of right answers, else the first figure.
        trials: number of random combinations to try of each grid; None: all.
    """

    grids: Mapping[str, Grid]
    split: str = HALF
    seed: int = 0
    criterion: str | None = None
    trials: int | None = None

    def trials_of(self, methods: Mapping[str, Any]) -> dict[str, tuple[Trial, ...]]:
        """Every combination of each method that is tuned.

        Args:
            methods: all methods of the run, by label.

        Raises:
            InputError: no grid, or a label without a method. UnknownParameterError, BadParameterError: see
                `grids`.
        """
        if not self.grids:
            raise InputError("nothing to tune: no method has a grid of parameters")
        unknown = [label for label in self.grids if label not in methods]
        if unknown:
            raise InputError(
                f"{unknown[0]!r} has a grid of parameters, but is not among the methods that are compared: "
                f"{', '.join(methods) or 'none'}"
            )
        return {label: make_trials(label, methods[label], grid) for label, grid in self.grids.items()}

    def drawn(self, trials: Mapping[str, tuple[Trial, ...]]) -> dict[str, tuple[Trial, ...]]:
        """Those of all trials that are run. Raises BadParameterError where a method has too few."""
        if self.trials is None:
            return dict(trials)
        return {label: draw_trials(label, each, self.trials, self.seed) for label, each in trials.items()}
