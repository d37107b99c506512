"""Two methods beside the plain model on the same captions, each figure with its interval.

python examples/compare_two_methods.py --pictures 120
"""

import argparse

import regaze
from regaze import SPARC, VCD
from regaze.eval import Chair, EvalTask, evaluate
from regaze.eval.report.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description="Two methods beside the plain model.")
    parser.add_argument("--model", default="demo", help='"demo", a hub id or a folder')
    parser.add_argument("--pictures", type=int, default=40, help="how many of the demo's 120 scenes")
    parser.add_argument("--output", default="out/compare", help="answers are kept here: a rerun goes on")
    options = parser.parse_args()

    gaze = regaze.wrap(*regaze.load(options.model))
    captions = EvalTask(Chair.of_demo(limit=options.pictures))
    methods = {"SPARC": SPARC(), "VCD": VCD()}
    results = evaluate(gaze, [captions], methods, options.output, model_name=options.model, controls=True)

    table = results.to_dataframe()
    shown = ["chair_s", "recall", "length", "repeated_4grams"]
    print(table.pivot(index=["kind", "condition"], columns="figure", values="value")[shown].round(3))
    report = write_report(results, options.output)[-1]
    print(f"intervals, plots and all figures: {report}")


if __name__ == "__main__":
    main()
