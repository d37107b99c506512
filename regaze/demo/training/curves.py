"""Draw the training curves.

python -m regaze.demo.training.curves --output docs/assets/demo-training.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING

from regaze.demo.shipped import MODEL_DIR
from regaze.writing import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACCURACY = {
    "vision": "category of shown patches",
    "projector": "nearest word of shown patches",
    "language": "yes/no answers (true labels)",
    "mix": "yes/no answers (noisy labels)",
    "describe": "yes/no answers (noisier labels)",
}


def plot_curves(log: Path) -> Figure:
    """Loss and accuracy of every stage from a ``training_log.csv``; one column per stage."""
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure = Figure(figsize=(3.1 * len(stages), 4.6), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False, sharex="col")
    for column, stage in enumerate(stages):
        points = [row for row in rows if row["stage"] == stage]
        steps = [int(row["step"]) for row in points]
        loss, accuracy = axes[:, column]
        loss.plot(steps, [float(row["loss"]) for row in points], color="tab:red")
        loss.set_yscale("log")
        minutes = (float(points[-1]["seconds"]) - float(points[0]["seconds"])) / 60
        loss.set_title(f"{column + 1}. {stage} ({minutes:.1f} min)")
        accuracy.plot(steps, [float(row["accuracy"]) for row in points], color="tab:blue")
        accuracy.set_ylim(0, 1.02)
        accuracy.set_title(_ACCURACY.get(stage, stage), fontsize="small")
        accuracy.set_xlabel("step")
        for axis in (loss, accuracy):
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("accuracy")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m regaze.demo.training.curves``."""
    parser = argparse.ArgumentParser(
        prog="python -m regaze.demo.training.curves", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--log", type=Path, default=MODEL_DIR / "training_log.csv")
    parser.add_argument("--output", type=Path, required=True, help="PNG, PDF or SVG")
    options = parser.parse_args(arguments)
    with replacing(options.output) as partial:
        plot_curves(options.log).savefig(partial, dpi=110)


if __name__ == "__main__":
    main()
