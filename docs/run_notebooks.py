"""Run the notebooks of docs/notebooks and write what they show into them.

    python docs/run_notebooks.py [NAME ...]

The pages of the site show these outputs, and tests compare them with those of a new run.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent / "notebooks"
#: Seconds that a cell may take: many times what it needs on an idle core.
_CELL_SECONDS = 600
#: What a run leaves in a notebook beside its outputs, and what differs from machine to machine.
_LEFT = ("execution", "widgets")


def paths(names: list[str] | None = None) -> list[Path]:
    """The notebooks, or those with these names (without their ending)."""
    return [path for path in sorted(HERE.glob("*.ipynb")) if not names or path.stem in names]


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in `folder`, without progress, warnings and times."""
    notebook = nbformat.read(path, as_version=4)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    client = NotebookClient(
        notebook,
        timeout=_CELL_SECONDS,
        iopub_timeout=_CELL_SECONDS,  # by itself it goes on after 4 seconds, without what comes later
        raise_on_iopub_timeout=True,
        coalesce_streams=True,  # a slow cell sends what it prints in several outputs
        resources={"metadata": {"path": str(folder)}},
        kernel_name="python3",
    )
    asyncio.run(client.async_execute(env=environment))
    for cell in notebook.cells:
        for name in _LEFT:
            cell.metadata.pop(name, None)
        if cell.cell_type == "code":
            cell.outputs = [each for each in map(_clean, cell.outputs) if each is not None]
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    return notebook


def _clean(output: Any) -> Any:
    """An output as it is kept; None where it is progress or a warning."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    shown = output.get("data", {})
    if "image/jpeg" in shown:  # a photograph comes as both
        shown.pop("image/png", None)
    if "image/png" in shown:
        shown["image/png"] = _small(shown["image/png"])
    if shown.keys() & {"image/png", "image/jpeg", "text/html"}:
        shown.pop("text/plain", None)
    return output


def _small(png: str) -> str:
    """A figure with 256 colours, as base64."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as figure:
        out = io.BytesIO()
        figure.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the notebooks and write their outputs into them.")
    parser.add_argument("names", nargs="*", help="names of notebooks without their ending; none: all")
    for path in paths(parser.parse_args().names):
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
