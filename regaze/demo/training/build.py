"""Draw the scenes and write the question files that ship.

    python -m regaze.demo.training.build --output DIR --seed N

The scenes come from a stream of their own ("shipped"), so the model never saw one of them in training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from regaze.demo.phrases import enumerate_phrases, place, with_article
from regaze.demo.shipped import DATA_DIR, FITTING_FILE, OBJECTS_FILE, behind_name, with_margin
from regaze.demo.training.questions import SPLITS, pope_questions, write_jsonl
from regaze.demo.training.render import Rendered, render_scene
from regaze.demo.world import CATEGORIES, co_occurrence
from regaze.writing import replace_file, replacing

SHIPPED_SCENES, FITTING_SCENES = 120, 32
FITTING_QUESTION = "Describe this image in detail."
BEHIND = 2  #: objects per scene, the largest first, of which ``behind`` has what they hide
WEBP_QUALITY = 92


def describe(name: str, scene: Rendered) -> dict:
    """The entry of a scene in ``scenes.json``."""
    objects = [{"category": o.category, "box": list(o.box), "colour": o.colour} for o in scene.objects]
    return {"name": name, "scene_type": scene.scene_type, "objects": objects}


def build(output: Path, seed: int = 0, count: int = SHIPPED_SCENES, quality: int = WEBP_QUALITY) -> None:
    """Write ``images``, ``behind``, ``scenes.json`` and ``pope_<split>.jsonl`` into ``output``.

    Args:
        seed, count: which scenes of the stream "shipped", from index 0 on.
        quality: of the pictures, in webp's 0 to 100.
    """
    (output / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(count):
        name = f"scene_{index:03d}.webp"
        scene = render_scene(seed, "shipped", index)
        with replacing(output / "images" / name) as partial:
            scene.image().save(partial, quality=quality, method=6)
        entries.append(describe(name, scene))
        build_behind(output / "behind", seed, index, scene, quality)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    replace_file(output / "scenes.json", f"[\n{lines}\n]\n")
    names = [entry["name"] for entry in entries]
    objects = [[thing["category"] for thing in entry["objects"]] for entry in entries]
    for split in SPLITS:
        questions = pope_questions(names, objects, split, np.random.default_rng([seed, 2_000]))
        write_jsonl(output / f"pope_{split}.jsonl", questions)


def build_behind(output: Path, seed: int, index: int, scene: Rendered, quality: int) -> None:
    """Write what lies behind a scene's largest objects, cut from the scene drawn without them.

    A copy of the scene without an object is made by pasting it (`regaze.eval.benchmarks.beaf.demo`).
    """
    output.mkdir(parents=True, exist_ok=True)
    largest = sorted(scene.objects, key=lambda thing: thing.area, reverse=True)[:BEHIND]
    for thing in largest:
        bare = render_scene(seed, "shipped", index, without=thing.category)
        name = behind_name(f"scene_{index:03d}.webp", scene.objects.index(thing))
        with replacing(output / name) as partial:
            bare.image().crop(with_margin(thing.box)).save(partial, quality=quality, method=6)


def caption_pair(scene: Rendered) -> tuple[str, str]:
    """A true caption of a scene, and the same one with the absent thing that is expected most at its end.

    Both have the form of the model's own captions, and the same length.
    """
    *others, last = scene.objects
    named = [
        f"{with_article(f'{o.colour} {o.category}' if o.colour else o.category)} {place(o)}" for o in others
    ]
    absent = CATEGORIES[int(co_occurrence().expectation([o.category for o in scene.objects]).argmax())]
    start = f"The image shows {with_article(scene.scene_type)} with "
    if others:
        start += f"{enumerate_phrases(named)}. There is also "
    return f"{start}{with_article(last.category)}.", f"{start}{with_article(absent)}."


def build_fitting(output: Path, seed: int = 0, count: int = FITTING_SCENES) -> None:
    """Write images, ``pairs.jsonl`` and ``objects.jsonl`` to fit methods on; no benchmark asks about them."""
    output.mkdir(parents=True, exist_ok=True)
    entries, annotated = [], []
    for index in range(count):
        name = f"fitting_{index:03d}.webp"
        scene = render_scene(seed, "fitting", index)
        with replacing(output / name) as partial:
            scene.image().save(partial, quality=WEBP_QUALITY, method=6)
        true, invented = caption_pair(scene)
        entry = {"id": index, "image": name, "value": true, "h_value": invented}
        entries.append({**entry, "question": FITTING_QUESTION})
        objects, boxes = [o.category for o in scene.objects], [o.box for o in scene.objects]
        annotated.append({"image": name, "caption": true, "objects": objects, "boxes": boxes})
    write_jsonl(output / FITTING_FILE.name, entries)
    write_jsonl(output / OBJECTS_FILE.name, annotated)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m regaze.demo.training.build``."""
    parser = argparse.ArgumentParser(
        prog="python -m regaze.demo.training.build", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=DATA_DIR)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    build(options.output, options.seed)
    build_fitting(options.output / FITTING_FILE.parent.name, options.seed)


if __name__ == "__main__":
    main()
