"""Measure the bed on the shipped scenes, none of which it saw in training.

    python -m regaze.bed.training.measure --base FOLDER --output FILE

POPE's splits, CHAIR of long captions by half, the other kinds of questions, what is left of the language
model without an image, visual sinks, and seconds per question on one thread. All answers are greedy.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from regaze.bed.scenes import QUESTIONS_FILE, questions_file, read_questions, scenes
from regaze.bed.training.asking import Asker
from regaze.bed.training.plain_text import plain_text_figures
from regaze.bed.training.scores import chair_figures, pope_figures, question_figures
from regaze.bed.training.sink_figures import sink_figures
from regaze.demo.shipped import Scene
from regaze.demo.training.conversations import DETAIL_PROMPTS
from regaze.demo.training.questions import SPLITS
from regaze.reading import StrPath
from regaze.toolkit.load import load
from regaze.toolkit.wrap import Gaze, wrap
from regaze.writing import replace_file

#: What is measured.
PARTS = ("pope", "captions", "questions", "plain_text", "sinks", "speed")
CAPTION_TOKENS = 192
SINK_SCENES, TIMED_QUESTIONS = 40, 20


def measure_pope(asker: Asker, among: Sequence[Scene]) -> dict[str, Any]:
    """`pope_figures` of each split."""
    entries = {split: read_questions(questions_file(split), among) for split in SPLITS}
    replies = iter(asker.ask([entry for split in SPLITS for entry in entries[split]], max_new_tokens=4))
    return {split: pope_figures(entries[split], [next(replies) for _ in entries[split]]) for split in SPLITS}


def measure_captions(asker: Asker, among: Sequence[Scene]) -> dict[str, Any]:
    """`chair_figures` of long captions, and some of these."""
    asked = [{"text": DETAIL_PROMPTS[0], "image": scene.name} for scene in among]
    captions = asker.ask(asked, CAPTION_TOKENS)
    examples = [
        {"image": scene.name, "present": [thing.category for thing in scene.objects], "caption": caption}
        for scene, caption in list(zip(among, captions, strict=True))[:8]
    ]
    return {**chair_figures(among, captions), "examples": examples}


def measure_speed(gaze: Gaze, among: Sequence[Scene]) -> dict[str, float]:
    """Median seconds of a yes/no question, asked alone, on one thread."""
    entries, threads = (
        read_questions(questions_file("random"), among)[:TIMED_QUESTIONS],
        torch.get_num_threads(),
    )
    pictures = {scene.name: scene.image() for scene in among}
    seconds = []
    torch.set_num_threads(1)
    try:
        for entry in entries:
            started = time.perf_counter()
            gaze.ask([pictures[entry["image"]]], [entry["text"]], max_new_tokens=4)
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return {"questions": len(entries), "median_seconds": float(np.median(seconds))}


def measure(
    gaze: Gaze,
    count: int | None = None,
    base: PreTrainedModel | None = None,
    parts: Sequence[str] = PARTS,
    answers: Path | None = None,
) -> dict[str, Any]:
    """Figures on the first ``count`` of the shipped scenes (default: all).

    Args:
        base: the untouched language model, for the figures without an image before training.
        parts: which of `PARTS`.
        answers: a file that keeps the answers, see `Asker`.
    """
    among, started = scenes()[:count], time.monotonic()
    pictures = [scene.image() for scene in among[:SINK_SCENES]]
    entries = read_questions(QUESTIONS_FILE, among)
    with Asker(gaze, answers) as asker:
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "pope": lambda: measure_pope(asker, among),
            "captions": lambda: measure_captions(asker, among),
            "questions": lambda: question_figures(entries, asker.ask(entries, max_new_tokens=16)),
            "plain_text": lambda: plain_text_figures(gaze, base),
            "sinks": lambda: sink_figures(gaze, pictures, DETAIL_PROMPTS[0]),
            "speed": lambda: measure_speed(gaze, among),
        }
        figures = {part: ways[part]() for part in PARTS if part in parts}
    known = {"scenes": len(among), "dtype": str(gaze.model.dtype).removeprefix("torch.")}
    return {**known, **figures, "seconds": round(time.monotonic() - started)}


def open_base(folder: StrPath) -> PreTrainedModel:
    """The untouched language model of a folder, in fp32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m regaze.bed.training.measure``."""
    parser = argparse.ArgumentParser(
        prog="python -m regaze.bed.training.measure", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="bed", help="what regaze.load takes")
    parser.add_argument("--base", type=Path, default=None, help="folder of the untouched language model")
    parser.add_argument("--scenes", type=int, default=None, help="measure on the first so many scenes only")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="measure these only")
    parser.add_argument(
        "--answers",
        type=Path,
        default=None,
        help="a file that keeps the answers, so that none is asked twice",
    )
    parser.add_argument("--output", type=Path, default=None, help="also write the figures here, as JSON")
    options = parser.parse_args(arguments)
    chosen = {"base": options.base} if options.model == "bed" and options.base else {}
    model, processor = load(options.model, dtype=torch.float32, **chosen)
    base = None if options.base is None else open_base(options.base)
    figures = measure(wrap(model, processor), options.scenes, base, options.parts, options.answers)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    print(text)
    if options.output:
        replace_file(options.output, text + "\n")


if __name__ == "__main__":
    main()
