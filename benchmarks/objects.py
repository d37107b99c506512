"""How well do boxes from a map fit the thing? `find_objects` without a segmenter, on the demo's known boxes.

    python benchmarks/objects.py [--scenes N] [--output FILE]

The scenes are those of `seeing.py`, and need the font of docs/guide/demo-model.md; docs/studies/maps.md tells
what came out. The share of a map's top where an object ends is chosen for each map on other scenes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import machine
from seeing import CELLS, GEOMETRY, OTHER_SEED, SEED, SIDE, Case, cases

import regaze
from regaze import Gaze
from regaze.cli.models import quiet_libraries
from regaze.demo.world import CATEGORIES
from regaze.toolkit.analysis.boxes import covered_share
from regaze.toolkit.analysis.faithfulness import shuffle_regions
from regaze.toolkit.analysis.flow import Flow, attention_flow, rollout
from regaze.toolkit.analysis.forward import key_index, row_index
from regaze.toolkit.analysis.intervals import estimate
from regaze.toolkit.analysis.objects import find_objects, main_region, pixel_map
from regaze.toolkit.analysis.objects.regions import bounding_box, overlap
from regaze.toolkit.analysis.relevance import relevance
from regaze.toolkit.prompts.geometry import Box

SCENES, OTHER_SCENES = 80, 25
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
#: the head that `seeing.py` chose for the row of the word, on other scenes
HEAD = (0, 0)
QUESTIONS = ("Is there a {} in the image?", "Where is the {}?", "Can you see a {}?")
OPEN = ("Describe the image in detail.", "What is in the image?")
WHOLE: Box = (0.0, 0.0, float(SIDE), float(SIDE))
Maps = Callable[..., Flow]


def attention(gaze: Gaze, inputs: Any, *, rows: Sequence[int], head: tuple[int, int] | None = None) -> Flow:
    """The rows' own attention on the image: of one head, or the mean over all."""
    tokens = gaze.tokens(inputs) if not hasattr(inputs, "tokens") else inputs.tokens
    with gaze.recording(slices="image", rows="all", tokens=tokens) as record, torch.inference_mode():
        gaze.model(**inputs, use_cache=False)
    slices = record[0].image_maps().flatten(3)  # [layers, Hq, L, cells]
    chosen = slices.mean((0, 1)) if head is None else slices[head]
    index, columns = row_index(tokens, rows), key_index(tokens, "image")
    return Flow(chosen[index[0]][None], index, columns, tokens)


def shuffled(gaze: Gaze, inputs: Any, *, rows: Sequence[int]) -> Flow:
    """The control: the flow's cells in random order."""
    flow = attention_flow(gaze, inputs, rows=rows)
    seed = int(flow.rows.sum()) + int(flow.values.argmax())  # another one in each scene
    return Flow(shuffle_regions(flow.values, seed), flow.rows, flow.columns, flow.tokens)


MAPS: dict[str, Maps] = {
    "attention flow": attention_flow,
    "attention flow, not regularised": partial(attention_flow, regularise="never"),
    "attention flow, heads not weighed": partial(attention_flow, weigh_heads=False),
    "rollout": rollout,
    "word's row, mean": attention,
    "word's row, one chosen head": partial(attention, head=HEAD),
    "gradient, propagated": relevance,
    "*shuffled flow*": shuffled,
}


def chosen_threshold(gaze: Gaze, maps: Maps, others: Sequence[Case]) -> float:
    """The threshold whose boxes fit best on other scenes."""
    fits = dict.fromkeys(THRESHOLDS, 0.0)
    for case in others:
        kept: list[Flow] = []

        def noted(*given: Any, kept: list[Flow] = kept, **options: Any) -> Flow:
            kept.append(maps(*given, **options))
            return kept[-1]

        find_objects(gaze, case.image, [case.thing.category], maps=noted)
        heat = pixel_map(kept[0], case.image.size)
        for threshold in THRESHOLDS:
            region = main_region(heat, threshold)
            fits[threshold] += overlap(bounding_box(region), case.thing.box) if region.any() else 0.0
    return max(THRESHOLDS, key=lambda threshold: fits[threshold])


def fits_of(boxes: Sequence[Box | None], chosen: Sequence[Case]) -> dict[str, Any]:
    """Mean overlap with the known box, and the shares of scenes where it is large, in percent of 1."""
    values = [0.0 if box is None else overlap(box, c.thing.box) for box, c in zip(boxes, chosen, strict=True)]
    return {
        "overlap": estimate(values).rounded(3),
        "over 0.3": estimate([float(v >= 0.3) for v in values]).rounded(3),
        "over 0.5": estimate([float(v >= 0.5) for v in values]).rounded(3),
    }


def asked(gaze: Gaze, chosen: Sequence[Case], maps: Maps, threshold: float, **options: Any) -> dict[str, Any]:
    """The surest box of the asked-for thing, in every scene."""
    boxes = []
    for case in chosen:
        options |= {"maps": maps, "threshold": threshold}
        found = find_objects(gaze, case.image, [case.thing.category], **options)
        boxes.append(found[0].box if found else None)
    return {"threshold": threshold, **fits_of(boxes, chosen)}


def named(gaze: Gaze, chosen: Sequence[Case], maps: Maps, threshold: float, least: float) -> dict[str, Any]:
    """Of things and of boxes that the model's descriptions give: which are right, word and place.

    Args:
        least: overlap of a box that counts as right.
    """
    recalls, precisions, words = [], [], []
    for case in chosen:
        things = [case.thing, *case.others]
        options: dict[str, Any] = {"questions": OPEN, "maps": maps, "threshold": threshold}
        found = find_objects(gaze, case.image, CATEGORIES, **options)

        def right(thing: Any, each: Any) -> bool:
            return each.word == thing.category and overlap(each.box, thing.box) >= least

        recalls.append(sum(any(right(t, e) for e in found) for t in things) / len(things))
        words.append(sum(any(e.word == t.category for e in found) for t in things) / len(things))
        if found:
            precisions.append(sum(any(right(t, e) for t in things) for e in found) / len(found))
    figures = {"named": words, "recall": recalls, "precision": precisions}
    return {name: estimate(values).rounded(3) for name, values in figures.items()}


def study(gaze: Gaze, scenes: int) -> dict[str, Any]:
    """All figures."""
    chosen, others = cases(SEED, scenes), cases(OTHER_SEED, OTHER_SCENES)
    thresholds = {name: chosen_threshold(gaze, maps, others) for name, maps in MAPS.items()}
    boxes = {name: asked(gaze, chosen, maps, thresholds[name]) for name, maps in MAPS.items()}
    given = gaze, chosen, attention_flow, thresholds["attention flow"]
    boxes["attention flow; four crops of 0.6 besides"] = asked(*given, scales=(1.0, 0.6))
    boxes["attention flow; three questions"] = asked(*given, questions=QUESTIONS)
    shares = [covered_share([case.thing.box], GEOMETRY, CELLS) for case in chosen]
    exact = [bounding_box(main_region(GEOMETRY.to_pixels(share), 0.5)) for share in shares]
    boxes["*share of each cell that the box covers*"] = {"threshold": 0.5, **fits_of(exact, chosen)}
    boxes["*whole image*"] = fits_of([WHOLE] * len(chosen), chosen)
    described = {
        name: named(gaze, chosen, MAPS[name], thresholds[name], 0.3)
        for name in ("attention flow", "word's row, one chosen head")
    }
    return {"scenes": scenes, "boxes": boxes, "described": described}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--output", type=Path, default=Path("docs/studies/seeing/objects.json"))
    options = parser.parse_args()
    quiet_libraries()
    facts, begun = machine(), time.monotonic()
    gaze = regaze.wrap(*regaze.load("demo"))
    found = {"machine": facts, **study(gaze, options.scenes), "seconds": round(time.monotonic() - begun)}
    options.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
