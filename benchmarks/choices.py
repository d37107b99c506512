"""How a method's plausibility cut acts on multiple choice scored by log-likelihood, as harnesses score it.

    python benchmarks/choices.py --model FOLDER --json benchmarks/results/choices.json

Sixty questions with four choices each: 34 countries by their capitals, 26 words by their opposites; the wrong
choices are other right ones, drawn by a seed. A choice is decoded under the method
(`regaze.eval.run.loglikelihood`, which is what the model of lm-eval does), and the most likely one counts.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from machine import machine

import regaze
from regaze.eval.run.loglikelihood import PRUNED_LOGPROB, loglikelihoods
from regaze.eval.stats.estimators import wilson
from regaze.interventions.registry import create_method

CAPITALS = (
    "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Portugal Lisbon, Greece Athens, Austria "
    "Vienna, Poland Warsaw, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, "
    "Ireland Dublin, Hungary Budapest, Russia Moscow, Japan Tokyo, China Beijing, India Delhi, Egypt "
    "Cairo, Kenya Nairobi, Cuba Havana, Peru Lima, Chile Santiago, Canada Ottawa, Turkey Ankara, Iran "
    "Tehran, Iraq Baghdad, Thailand Bangkok, Vietnam Hanoi, Belgium Brussels, Ukraine Kyiv, Bulgaria "
    "Sofia, Romania Bucharest, Scotland Edinburgh"
)
OPPOSITES = (
    "hot cold, big small, up down, left right, fast slow, old young, rich poor, hard soft, light dark, "
    "open closed, early late, happy sad, strong weak, full empty, wet dry, high low, near far, loud "
    "quiet, clean dirty, good bad, long short, true false, first last, day night, love hate, war peace"
)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dola": {"name": "dola"},
    "dola, beta=0": {"name": "dola", "beta": 0.0},
}


def questions(seed: int = 0) -> list[tuple[str, list[str]]]:
    """Question and four choices, the right one first."""
    draw, made = random.Random(seed), []
    for pairs, text in (
        (CAPITALS, "The capital of {} is"),
        (OPPOSITES, "The opposite of {} is"),
    ):
        known = [tuple(pair.split()) for pair in pairs.split(", ")]
        for asked, right in known:
            wrong = draw.sample([answer for _, answer in known if answer != right], 3)
            made.append((text.format(asked), [f" {choice}" for choice in (right, *wrong)]))
    return made


def scores(gaze: regaze.Gaze, asked: list[tuple[str, list[str]]]) -> list[list[float]]:
    """Log-likelihood of every choice of every question."""
    tokenizer = gaze.reader.tokenizer
    result = []
    for text, choices in asked:
        context = tokenizer(text)["input_ids"]
        inputs = tokenizer.pad({"input_ids": [context] * len(choices)}, return_tensors="pt")
        targets = [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in choices]
        result.append([score.logprob for score in loglikelihoods(gaze.model, inputs, targets)])
    return result


def measure(model: str) -> dict[str, Any]:
    """Figures of every setting."""
    gaze, asked, figures = regaze.wrap(*regaze.load(model, dtype=torch.float32)), questions(), {}
    for label, setting in SETTINGS.items():
        with gaze.using(*([create_method(**setting)] if setting else [])):
            made = scores(gaze, asked)
        right = sum(max(range(4), key=row.__getitem__) == 0 for row in made)
        cut = [sum(score <= PRUNED_LOGPROB for score in row) for row in made]
        figures[label] = {
            "right": right,
            "interval": wilson(right, len(asked)),
            "choices_with_cut_tokens": sum(cut),
            "questions_with_right_choice_cut": sum(row[0] <= PRUNED_LOGPROB for row in made),
        }
    return {"questions": len(asked), "settings": figures}


def main() -> None:
    """Measure and print, or write a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a language model: hub id or folder")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    result = {"machine": machine(), "model": Path(arguments.model).name, **measure(arguments.model)}
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
