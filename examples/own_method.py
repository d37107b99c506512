"""A method in a few lines, and what it changes: it subtracts what the model would say without the picture.

python examples/own_method.py --weight 1
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import NonNegativeFloat

import regaze
from regaze.eval import Chair, evaluate_benchmark
from regaze.interventions import Intervention
from regaze.toolkit import Context
from regaze.toolkit.model.branches import without_image
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch


@dataclass(frozen=True)
class NotBlindly(Intervention):
    """Subtract what the model would say without its picture; weight=0 changes nothing."""

    name: ClassVar[str] = "not-blindly"
    weight: NonNegativeFloat = 2.0

    def branches(self, context: Context) -> Mapping[str, Branch]:
        return {"blind": without_image(context)} if self.weight else {}

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        if not self.weight:
            return None
        blind = context.logits("blind")
        return LogitsCombination(1 + self.weight, [(-self.weight, blind)], plausibility=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description="An own method, and what it changes.")
    parser.add_argument("--weight", type=float, default=2.0)
    parser.add_argument("--pictures", type=int, default=40, help="how many of the demo's 120 scenes")
    parser.add_argument("--output", default="out/own-method", help="answers are kept here: a rerun goes on")
    options = parser.parse_args()

    gaze = regaze.wrap(*regaze.load("demo"))
    captions, method = Chair.of_demo(limit=options.pictures), NotBlindly(options.weight)
    results = evaluate_benchmark(gaze, captions, method, options.output, model_name="demo")
    changed = results.to_dataframe().query("kind == 'method'").set_index("figure")
    print(changed[["value", "difference", "difference_low", "difference_high"]].round(3))


if __name__ == "__main__":
    main()
