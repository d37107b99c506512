"""Draw the scenes that ship with the bed and write the questions about them.

    python -m regaze.bed.training.build --output DIR

The scenes are of the stream "shipped" with a seed of their own: neither the demo's tower nor the bed saw one
of them in training. ``questions.jsonl`` has the questions that are not POPE's, as ``{"question_id", "image",
"kind", "text", "answer"}``, and for those with a false premise also ``"form"`` and ``"expectation"``: how
strongly the absent thing is expected (`regaze.bed.training.noise`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from regaze.bed.scenes import DATA_DIR, QUESTIONS_FILE
from regaze.bed.training.conversations import HELD_OUT_COLOURS, Questioner, no_such, relative_question
from regaze.demo.training.build import build as build_scenes
from regaze.demo.training.questions import write_jsonl
from regaze.demo.training.render import Rendered, render_scene
from regaze.demo.world import CATEGORIES, COLOURED

SCENES, SEED = 400, 1
WEBP_QUALITY = 80
#: Questions with a false premise: of the first two forms training has some, of the others none.
FALSE_PREMISES = ("where", "colour", "colour held out", "relation held out")


def questions(scene: Rendered, number: int, rng: np.random.Generator) -> Iterator[dict]:
    """A multiple-choice question, two relations where the scene has any, two counts, two false premises."""
    questioner = Questioner(scene, rng, noise=0.0)
    for kind, ask in (
        ("multiple choice", questioner.multiple_choice),
        ("relation", lambda: questioner.relation(worded=False)),
        ("relation in words", lambda: questioner.relation(worded=True)),
        ("count", lambda: questioner.count(everything=True)),
        ("count", lambda: questioner.count(everything=False)),
    ):
        turn = ask()
        if turn is not None:
            yield {"kind": kind, "text": turn.question, "answer": turn.answer}
    for offset in (0, 1):
        form = FALSE_PREMISES[(2 * number + offset) % len(FALSE_PREMISES)]
        yield false_premise(questioner, form, likely=number // 2 % 2 == 0)


def false_premise(questioner: Questioner, form: str, likely: bool) -> dict:
    """A question about something absent; ``likely`` picks the most expected category that fits the form."""
    choices = {"colour": COLOURED - {*HELD_OUT_COLOURS}, "colour held out": {*HELD_OUT_COLOURS}}
    fitting = choices.get(form, {*CATEGORIES})
    absent = [name for name in questioner.absent if name in fitting]
    expected = [float(questioner.expectation[CATEGORIES.index(name)]) for name in absent]
    pick = int(np.argmax(expected)) if likely else int(questioner.rng.integers(len(absent)))
    category = absent[pick]
    text = {
        "where": f"Where is the {category}?",
        "relation held out": relative_question(category, questioner.present[0]),
    }.get(form, f"What color is the {category}?")
    entry = {"kind": "false premise", "text": text, "answer": no_such(category), "form": form}
    return {**entry, "expectation": round(expected[pick], 3)}


def build(output: Path, seed: int = SEED, count: int = SCENES) -> None:
    """Write scenes, POPE questions and ``questions.jsonl`` into ``output``."""
    build_scenes(output, seed, count, WEBP_QUALITY)
    entries: list[dict] = []
    for index in range(count):
        scene = render_scene(seed, "shipped", index)
        for entry in questions(scene, index, np.random.default_rng([seed, 4_000, index])):
            entries.append({"question_id": len(entries) + 1, "image": f"scene_{index:03d}.webp", **entry})
    write_jsonl(output / QUESTIONS_FILE.name, entries)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m regaze.bed.training.build``."""
    parser = argparse.ArgumentParser(
        prog="python -m regaze.bed.training.build", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=DATA_DIR)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    build(options.output, options.seed)


if __name__ == "__main__":
    main()
