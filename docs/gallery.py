"""Run the code of gallery.md, which draws its pictures.

    python docs/gallery.py [--smollm FOLDER] [--output DIR]

Without a folder of SmolLM2-135M-Instruct the section that needs it is skipped; its pictures stay as they are.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
PICTURES = "assets/gallery/"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(page: str) -> list[tuple[int, str]]:
    """The Python blocks of the page, each with the number of the line before it."""
    found = re.finditer(r"^```python\n(.*?)^```", page, re.M | re.S)
    return [(page.count("\n", 0, each.start()) + 1, each.group(1)) for each in found]


def draw(output: Path, smollm: str | None = None) -> None:
    """Run the code of the page and write its pictures to a folder; `smollm` replaces the model's hub name."""
    page = HERE / "gallery.md"
    names: dict[str, Any] = {}
    text = page.read_text(encoding="utf-8")
    text = text if smollm else text[: text.index("\n## Text\n")]
    output.mkdir(parents=True, exist_ok=True)
    before, output = Path.cwd(), output.resolve()
    os.chdir(HERE)
    try:
        for line, code in blocks(text):
            code = code.replace(PICTURES, f"{output.as_posix()}/").replace(SMOLLM, smollm or SMOLLM)
            exec(compile("\n" * line + code, str(page), "exec"), names)  # errors name the page's lines
    finally:
        os.chdir(before)


def shrink(path: Path, limit: int = 150_000) -> None:
    """Scale a picture down until its file is smaller than `limit` bytes."""
    with Image.open(path) as picture:
        drawn, scale = picture.convert("RGB"), 1.0
    while path.stat().st_size >= limit:
        scale *= 0.9
        size = round(drawn.width * scale), round(drawn.height * scale)
        drawn.resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the code of gallery.md, which draws its pictures.")
    parser.add_argument("--smollm", help="folder of SmolLM2-135M-Instruct, or its name on the hub")
    parser.add_argument("--output", type=Path, default=HERE / PICTURES)
    options = parser.parse_args()
    folder = options.smollm
    if folder and Path(folder).is_dir():
        folder = str(Path(folder).resolve())
    draw(options.output, folder)
    for picture in options.output.glob("*.png"):
        shrink(picture)


if __name__ == "__main__":
    main()
