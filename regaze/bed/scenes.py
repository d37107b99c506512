"""What the package ships for the bed: 400 scenes that no training saw, and questions about them.

The scenes are the demo's world, drawn anew. `regaze.bed.training.build` made them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regaze.demo.shipped import Scene, SceneSet

#: Scenes and question files.
DATA_DIR: Path = Path(__file__).resolve().parent / "data"
#: The scenes, 112 x 112 webp.
IMAGE_DIR: Path = DATA_DIR / "images"
#: Questions of other kinds than POPE's: a JSON object per line, see `regaze.bed.training.build`.
QUESTIONS_FILE: Path = DATA_DIR / "questions.jsonl"
#: Texts and questions without an image.
TEXT_FILE: Path = DATA_DIR / "text.json"


#: What ships with the bed.
BED = SceneSet("bed", DATA_DIR)


def scenes() -> list[Scene]:
    """The shipped scenes, in a fixed order; needs no emoji font."""
    return BED.scenes()


def questions_file(split: str) -> Path:
    """The file of POPE questions about the scenes, in the official JSON-lines format.

    Args:
        split: "random", "popular" or "adversarial".

    Raises:
        RegazeError: there is no such split.
    """
    return BED.questions_file(split)


def read_questions(path: Path, among: Sequence[Scene]) -> list[dict[str, Any]]:
    """The entries of a file of questions that are about some of the scenes, in order."""
    names = {scene.name for scene in among}
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if entry["image"] in names]
