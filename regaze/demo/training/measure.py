"""Measure a demo model on scenes it never saw.

    python -m regaze.demo.training.measure --model DIR --scenes 400

POPE (three splits, official rule) by exact match of the first word, CHAIR of the detailed captions by word
search in the closed vocabulary, and whether the hallucinated objects co-occur with those of the scene.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from rich.progress import track
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from regaze.demo.shipped import MODEL_DIR, Scene
from regaze.demo.training.conversations import DETAIL_PROMPTS
from regaze.demo.training.questions import SPLITS, pope_questions
from regaze.demo.training.render import Rendered, render_scene
from regaze.demo.world import CATEGORIES, SCENE_TYPES, co_occurrence
from regaze.reading import StrPath
from regaze.writing import replace_file

PARTNERS = 5  # the likely partners of a category are the five that co-occur most
_MENTION = re.compile(r"\b(" + "|".join(sorted(map(re.escape, CATEGORIES), key=len, reverse=True)) + r")\b")


def load(folder: StrPath) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Model (fp32, evaluation mode) and processor of a folder."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def _conversation(image: Image, question: str) -> list[dict]:
    return [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}
    ]


@torch.inference_mode()
def answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Image],
    questions: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[str]:
    """Greedy answers to one question per image, in order; batched with left padding."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    replies = [""] * len(questions)
    for start in track(range(0, len(order), batch_size), "answering", transient=True):
        rows = order[start : start + batch_size]
        inputs: BatchFeature = processor.apply_chat_template(  # type: ignore[assignment]
            [_conversation(images[i], questions[i]) for i in rows],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        generate: Any = model.generate  # releases of transformers annotate it differently
        output: torch.Tensor = generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        output = output[:, inputs["input_ids"].shape[1] :]
        for i, text in zip(rows, processor.batch_decode(output, skip_special_tokens=True), strict=True):
            replies[i] = text.strip()
    return replies


def mention_places(caption: str) -> list[tuple[str, int]]:
    """Categories that a caption names, with the number of words before each, in order.

    The longest name counts ("hot dog" is no dog).
    """
    found = _MENTION.finditer(caption.lower())
    return [(match[1], len(caption[: match.start()].split())) for match in found]


def mentioned(caption: str) -> list[str]:
    """Categories that a caption names, in order (`mention_places`)."""
    return [name for name, _ in mention_places(caption)]


def measure_pope(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, scenes: Sequence[Rendered], seed: int = 0
) -> dict:
    """Per split accuracy, precision, recall, F1, yes-ratio, and accuracy on present and absent objects."""
    objects = [[thing.category for thing in scene.objects] for scene in scenes]
    names = [str(i) for i in range(len(scenes))]
    figures = {}
    for split in SPLITS:
        entries = pope_questions(names, objects, split, np.random.default_rng([seed, 3_000]))
        images = [scenes[int(entry["image"])].image() for entry in entries]
        replies = answers(model, processor, images, [entry["text"] for entry in entries], max_new_tokens=4)
        label = np.array([entry["label"] == "yes" for entry in entries])
        yes = np.array([reply == "Yes" for reply in replies])
        unreadable = sum(reply not in ("Yes", "No") for reply in replies)
        hits = (yes & label).sum()
        precision, recall = hits / max(1, yes.sum()), hits / label.sum()
        figures[split] = {
            "questions": len(entries),
            "accuracy": float((yes == label).mean()),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(2 * hits / max(1, yes.sum() + label.sum())),
            "yes_ratio": float(yes.mean()),
            "accuracy_present": float(yes[label].mean()),
            "accuracy_absent": float(1 - yes[~label].mean()),
            "neither_yes_nor_no": int(unreadable),
        }
    return figures


def co_occurring(scene: Rendered | Scene) -> np.ndarray:
    """Which absent categories co-occur with a scene; boolean over `CATEGORIES`, False where present.

    They belong to its type of place, or are among the five likeliest partners of one of its objects.
    """
    related = set(SCENE_TYPES[scene.scene_type].weights)
    present = {thing.category for thing in scene.objects}
    for name in present:
        related |= {
            CATEGORIES[i] for i in np.argsort(-co_occurrence().given[CATEGORIES.index(name)])[:PARTNERS]
        }
    return np.array([name in related and name not in present for name in CATEGORIES])


def measure_chair(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, scenes: Sequence[Rendered]
) -> dict:
    """CHAIR of the captions for "Please describe this image in detail." (one caption per scene).

    ``co_occurring`` is the share of hallucinated mentions that co-occur with their scene (`co_occurring`),
    ``co_occurring_chance`` the share that a random absent category of the same scenes would have.
    """
    captions = answers(
        model, processor, [s.image() for s in scenes], [DETAIL_PROMPTS[0]] * len(scenes), max_new_tokens=96
    )
    mentions = wrong = bad_captions = expected = covered = 0
    chance: list[float] = []
    for scene, caption in zip(scenes, captions, strict=True):
        present = {thing.category for thing in scene.objects}
        named, related = mentioned(caption), co_occurring(scene)
        hallucinated = [name for name in named if name not in present]
        mentions, wrong, bad_captions = (
            mentions + len(named),
            wrong + len(hallucinated),
            bad_captions + bool(hallucinated),
        )
        expected += sum(bool(related[CATEGORIES.index(name)]) for name in hallucinated)
        covered += len(present & set(named))
        chance += [float(related.sum() / (len(CATEGORIES) - len(present)))] * len(hallucinated)
    return {
        "captions": len(captions),
        "chair_s": bad_captions / len(captions),
        "chair_i": wrong / max(1, mentions),
        "recall": covered / sum(len(scene.objects) for scene in scenes),
        "words_per_caption": float(np.mean([len(caption.split()) for caption in captions])),
        "hallucinated_mentions": wrong,
        "co_occurring": expected / max(1, wrong),
        "co_occurring_chance": float(np.mean(chance)) if chance else 0.0,
        "examples": [
            {"present": [thing.category for thing in scene.objects], "caption": caption}
            for scene, caption in list(zip(scenes, captions, strict=True))[:8]
        ],
    }


def measure(folder: StrPath, scenes: int = 400, seed: int = 1) -> dict:
    """All figures of the model in ``folder`` on ``scenes`` held-out scenes."""
    model, processor = load(folder)
    drawn = [render_scene(seed, "heldout", index) for index in range(scenes)]
    started = time.monotonic()
    figures = {"scenes": scenes, "seed": seed, "pope": measure_pope(model, processor, drawn, seed)}
    figures["chair"] = measure_chair(model, processor, drawn)
    figures["seconds"] = round(time.monotonic() - started, 1)
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m regaze.demo.training.measure``."""
    parser = argparse.ArgumentParser(
        prog="python -m regaze.demo.training.measure", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=None, help="also write the figures here, as JSON")
    options = parser.parse_args(arguments)
    text = json.dumps(measure(options.model, options.scenes, options.seed), indent=1)
    print(text)
    if options.output:
        replace_file(options.output, text + "\n")


if __name__ == "__main__":
    main()
