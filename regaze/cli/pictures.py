"""Images that commands read, and the pictures they draw."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from regaze import demo
from regaze.bed.scenes import BED
from regaze.cli import console
from regaze.errors import BadParameterError, InputError
from regaze.eval.benchmarks.common.earlier import picture_file
from regaze.interventions import Method
from regaze.names import find_name
from regaze.toolkit import Gaze, analysis, plot
from regaze.toolkit.prompts.remote import is_url
from regaze.writing import make_folder, require_writable


def find_image(name: str, allow_urls: bool = False) -> Path:
    """The file of this name, else the shipped scene of this name (with or without its suffix); the bed's are
    "bed/scene_000" and so on.

    Where URLs are allowed, what one leads to is kept in the cache.
    """
    if is_url(name):
        return picture_file(name, Path(), "image", allow_urls)
    if os.path.exists(name):  # Path.exists raises for names that are too long
        return Path(name)
    scenes = {Path(scene.name).stem: scene.path for scene in demo.scenes()}
    of_bed = {f"bed/{Path(scene.name).stem}": scene.path for scene in BED.scenes()}
    known = scenes | of_bed
    known |= {f"{short}{path.suffix}": path for short, path in known.items()}
    if (found := find_name(name, known)) is not None:
        return known[found]
    raise InputError(
        f"image {name} does not exist, and no shipped scene has that name: {min(scenes)} to {max(scenes)}, "
        f"{min(of_bed)} to {max(of_bed)}"
    )


def find_images(names: str, allow_urls: bool = False) -> list[Path]:
    """No image for "none"; one; or several with commas between, unless a file has the whole name."""
    if names == "none":
        return []
    if is_url(names):
        return [find_image(names, allow_urls)]
    if os.path.exists(names):
        return [Path(names)]
    return [find_image(name.strip(), allow_urls) for name in names.split(",")]


def check_output(path: Path, suffixes: tuple[str, ...]) -> None:
    """Check an output file; called before a model is loaded, so that errors come early.

    Raises:
        InputError: another suffix, the name of a folder or of what is no file, or the file cannot be written.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(f"output {path}: expected a name that ends in {', '.join(suffixes)}")
    if os.path.isdir(path):
        raise InputError(f"output {path} is a folder; expected the name of a file")
    require_writable(path)


def draw_heatmap(
    gaze: Gaze,
    method: Method | None,
    image: Path,
    question: str,
    output: Path,
    *,
    token: int | str | None = None,
    layers: list[int] | None = None,
    heads: list[int] | None = None,
    views: plot.views.Views = "sum",
    max_new_tokens: int = 32,
) -> str:
    """Ask a question, write the heatmap of one token or word to `output`, and return the answer.

    Args:
        token, views: as for `plot.heatmap`.

    With a method the map shows the attention as edited, which is what the model then acts on.
    """
    methods: list[Any] = [method] if method else []
    recorded: dict[str, Any] = {
        "slices": "image",
        "masses": False,
        "layers": layers,
        "rows": "last" if isinstance(token, int) else "text",
        "edited": bool(methods),
    }
    with gaze.using(*methods), gaze.recording(**recorded) as record:
        answer = gaze.ask([image], [question], max_new_tokens=max_new_tokens)[0]
    make_folder(output.parent)
    chosen: dict[str, Any] = {"token": token, "layers": layers, "heads": heads, "views": views}
    plot.heatmap(record, gaze.seen(image), **chosen, path=output)
    return answer


def draw_objects(
    gaze: Gaze,
    image: Path,
    words: list[str] | None,
    output: Path,
    *,
    segmenter: str | None = None,
    maps: str = "flow",
    **options: Any,
) -> list[analysis.FoundObject]:
    """Find objects (`analysis.find_objects`, with its options), and write the picture of them to `output`.

    Args:
        segmenter: name of a SAM on the hub, or a folder. maps: "flow", "relevance" or "rollout".

    Raises:
        BadParameterError: another map. ModelNotFoundError: there is no such segmenter.
    """
    known: dict[str, Any] = {
        "flow": analysis.attention_flow,
        "relevance": analysis.relevance,
        "rollout": analysis.rollout,
    }
    if (found_map := find_name(maps, known)) is None:
        raise BadParameterError(f"map {maps!r}: expected one of {', '.join(known)}")
    if segmenter is not None:
        with console.status(f"loading {segmenter}"):
            options["segmenter"] = analysis.load_segmenter(segmenter, str(gaze.model.device))
    found = analysis.find_objects(gaze, image, words, maps=known[found_map], **options)
    make_folder(output.parent)
    plot.objects(found, image, path=output)
    return found
