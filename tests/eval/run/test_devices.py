"""An evaluation on one and on two devices: the answers of the CPU."""

from __future__ import annotations

from standins import lines, write_pope

from regaze.eval.run.runner import evaluate_benchmark
from regaze.interventions import VCD


def test_an_evaluation(placed, tmp_path):
    benchmark, runs = write_pope(tmp_path), iter("abc")

    def run(gaze):
        folder = tmp_path / next(runs)
        evaluate_benchmark(gaze, benchmark, VCD(), folder, model_name="m", batch_size=4, max_new_tokens=3)
        rows = lines(folder / "answers.jsonl")
        return [(row["condition"], row["key"], row["answer"]) for row in rows]

    placed.check(run, waits=True)
