"""What a greedy decoder would answer that sees everything and has learned the noise of its labels by heart.

It claims what is claimed more often than not: where better learning leads. The rates of
`regaze.bed.training.noise` were chosen by its figures, before any training.

    python -m regaze.bed.training.perfect --output FILE
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regaze.bed.scenes import questions_file, read_questions, scenes
from regaze.bed.training.captions import CaptionWriter
from regaze.bed.training.noise import ANSWER_CLAIMS, ClaimRate, expectations, expected_absent
from regaze.bed.training.scores import chair_figures, pope_figures
from regaze.demo.phrases import existence_question
from regaze.demo.shipped import Scene, SceneObject
from regaze.demo.training.questions import SPLITS
from regaze.demo.world import CATEGORIES
from regaze.writing import replace_file

_ASKED = {existence_question(category): index for index, category in enumerate(CATEGORIES)}


def perfect_answer(scene: Scene, question: str) -> str:
    """Yes or No to POPE's question."""
    present = [thing.category for thing in scene.objects]
    expectation = float(expectations(present)[_ASKED[question]])
    there = CATEGORIES[_ASKED[question]] in present
    return "Yes" if there or ANSWER_CLAIMS(expectation) > 0.5 else "No"


class _GreedyWriter(CaptionWriter):
    def seen(self) -> list[SceneObject]:
        return sorted(self.scene.objects, key=lambda thing: -thing.area)

    def claim(self, rate: ClaimRate, claimed: Sequence[str]) -> tuple[str, str] | None:
        category, expectation, partner = expected_absent([*self.present, *claimed])
        return (category, partner) if rate(expectation) > 0.5 else None


def perfect_caption(scene: Scene, seed: int = 0) -> str:
    """A long caption; the seed decides between wordings that are equally likely."""
    return _GreedyWriter(scene, np.random.default_rng(seed)).long()


def perfect_figures(among: Sequence[Scene]) -> dict[str, Any]:
    """Its figures on the shipped scenes, as `regaze.bed.training.measure` has them of the bed."""
    by_name, pope = {scene.name: scene for scene in among}, {}
    for split in SPLITS:
        entries = read_questions(questions_file(split), among)
        replies = [perfect_answer(by_name[entry["image"]], entry["text"]) for entry in entries]
        pope[split] = pope_figures(entries, replies)
    captions = [perfect_caption(scene, seed) for seed, scene in enumerate(among)]
    return {"scenes": len(among), "pope": pope, "captions": chair_figures(among, captions)}


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m regaze.bed.training.perfect``."""
    parser = argparse.ArgumentParser(
        prog="python -m regaze.bed.training.perfect", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=None, help="also write the figures here, as JSON")
    options = parser.parse_args(arguments)
    text = json.dumps(perfect_figures(scenes()), indent=1)
    print(text)
    if options.output:
        replace_file(options.output, text + "\n")


if __name__ == "__main__":
    main()
