"""Draw the scenes and write the question files that ship.

    python -m regaze.demo.training.build --output DIR --seed N

The scenes come from a stream of their own ("shipped"), so the model never saw one of them in training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from regaze.demo.shipped import DATA_DIR
from regaze.demo.training.questions import SPLITS, pope_questions, write_jsonl
from regaze.demo.training.render import Rendered, render_scene
from regaze.writing import replace_file, replacing

SHIPPED_SCENES = 120
WEBP_QUALITY = 92


def describe(name: str, scene: Rendered) -> dict:
    """The entry of a scene in ``scenes.json``."""
    objects = [{"category": o.category, "box": list(o.box), "colour": o.colour} for o in scene.objects]
    return {"name": name, "scene_type": scene.scene_type, "objects": objects}


def build(output: Path, seed: int = 0, count: int = SHIPPED_SCENES) -> None:
    """Write ``images/*.webp``, ``scenes.json`` and ``pope_<split>.jsonl`` into ``output``."""
    (output / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(count):
        name = f"scene_{index:03d}.webp"
        scene = render_scene(seed, "shipped", index)
        with replacing(output / "images" / name) as partial:
            scene.image().save(partial, quality=WEBP_QUALITY, method=6)
        entries.append(describe(name, scene))
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    replace_file(output / "scenes.json", f"[\n{lines}\n]\n")
    names = [entry["name"] for entry in entries]
    objects = [[thing["category"] for thing in entry["objects"]] for entry in entries]
    for split in SPLITS:
        questions = pope_questions(names, objects, split, np.random.default_rng([seed, 2_000]))
        write_jsonl(output / f"pope_{split}.jsonl", questions)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m regaze.demo.training.build``."""
    parser = argparse.ArgumentParser(
        prog="python -m regaze.demo.training.build", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=DATA_DIR)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    build(options.output, options.seed)


if __name__ == "__main__":
    main()
