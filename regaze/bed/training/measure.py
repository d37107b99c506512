"""Measure the bed on the shipped scenes, none of which it saw in training.

    python -m regaze.bed.training.measure --base FOLDER --output FILE

POPE's splits, CHAIR of long captions by half, the other kinds of questions, what is left of the language
model without an image, visual sinks, and seconds per question on one thread. All answers are greedy.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from transformers import AutoModelForCausalLM, PreTrainedModel

from regaze.bed.scenes import QUESTIONS_FILE, questions_file, read_questions, scenes
from regaze.bed.training.plain_text import plain_text_figures
from regaze.bed.training.scores import Entry, chair_figures, pope_figures, question_figures
from regaze.bed.training.sink_figures import sink_figures
from regaze.demo.shipped import Scene
from regaze.demo.training.conversations import DETAIL_PROMPTS
from regaze.demo.training.questions import SPLITS
from regaze.eval.run.prefix_cache import PrefixSharing
from regaze.reading import StrPath
from regaze.toolkit.load import load
from regaze.toolkit.wrap import Gaze, wrap
from regaze.writing import replace_file

CAPTION_TOKENS = 192
SINK_SCENES, TIMED_QUESTIONS = 40, 20


def ask(gaze: Gaze, entries: Sequence[Entry], max_new_tokens: int, batch_size: int = 32) -> list[str]:
    """Greedy answers in the order of the entries.

    A question that comes twice about an image is asked once, and questions about one image share its prefill.
    """
    paths = {scene.name: scene.path for scene in scenes()}
    pairs = sorted({(entry["image"], entry["text"]) for entry in entries})
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    sharing = PrefixSharing(gaze, None, options)
    found: dict[tuple[str, str], str] = {}
    for start in track(range(0, len(pairs), batch_size), "answering", transient=True):
        batch = pairs[start : start + batch_size]
        images, texts = [(paths[image],) for image, _ in batch], [text for _, text in batch]
        if start == 0 and len(set(images)) < len(images):
            sharing.check(images, texts)
        found |= zip(batch, sharing.answer(images, texts, options), strict=True)
    return [found[entry["image"], entry["text"]] for entry in entries]


def measure_pope(gaze: Gaze, among: Sequence[Scene]) -> dict[str, Any]:
    """`pope_figures` of each split."""
    entries = {split: read_questions(questions_file(split), among) for split in SPLITS}
    replies = iter(ask(gaze, [entry for split in SPLITS for entry in entries[split]], max_new_tokens=4))
    return {split: pope_figures(entries[split], [next(replies) for _ in entries[split]]) for split in SPLITS}


def measure_captions(gaze: Gaze, among: Sequence[Scene]) -> dict[str, Any]:
    """`chair_figures` of long captions, and some of these."""
    asked = [{"text": DETAIL_PROMPTS[0], "image": scene.name} for scene in among]
    captions = ask(gaze, asked, CAPTION_TOKENS)
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


def measure(gaze: Gaze, count: int | None = None, base: PreTrainedModel | None = None) -> dict[str, Any]:
    """All figures on the first ``count`` of the shipped scenes (default: all).

    Args:
        base: the untouched language model, for the figures without an image before training.
    """
    among = scenes()[:count]
    entries, started = read_questions(QUESTIONS_FILE, among), time.monotonic()
    figures = {
        "scenes": len(among),
        "dtype": str(gaze.model.dtype).removeprefix("torch."),
        "pope": measure_pope(gaze, among),
        "captions": measure_captions(gaze, among),
        "questions": question_figures(entries, ask(gaze, entries, max_new_tokens=16)),
        "plain_text": plain_text_figures(gaze, base),
        "sinks": sink_figures(gaze, [scene.image() for scene in among[:SINK_SCENES]], DETAIL_PROMPTS[0]),
        "speed": measure_speed(gaze, among),
    }
    return {**figures, "seconds": round(time.monotonic() - started)}


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
    parser.add_argument("--output", type=Path, default=None, help="also write the figures here, as JSON")
    options = parser.parse_args(arguments)
    chosen = {"base": options.base} if options.model == "bed" and options.base else {}
    model, processor = load(options.model, dtype=torch.float32, **chosen)
    base = None if options.base is None else open_base(options.base)
    text = json.dumps(measure(wrap(model, processor), options.scenes, base), indent=1, ensure_ascii=False)
    print(text)
    if options.output:
        replace_file(options.output, text + "\n")


if __name__ == "__main__":
    main()
