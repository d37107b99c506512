"""A virtual environment as `pip install WHEEL` makes one, without downloads."""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel without its extras; returns the environment's Python.

    What the wheel requires is linked from this process's environment; nothing else of that can be imported.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True)
    (installed,) = site.glob("regaze-*.dist-info")
    for found in required(Distribution.at(installed)).values():
        for entry in {str(file).split("/")[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link = site / entry
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(entry))))
    return python


def required(package: Distribution) -> dict[str, Distribution]:
    """What a package needs without extras, directly or not, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(package, frozenset({""}))]
    seen = set()
    while waiting:
        current, extras = waiting.pop()
        for text in current.requires or ():
            requirement = Requirement(text)
            if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in extras):
                continue
            key = (requirement.name.lower(), frozenset({"", *requirement.extras}))
            if key in seen:
                continue
            seen.add(key)
            try:
                found[key[0]] = distribution(requirement.name)
            except PackageNotFoundError:  # of torch for CUDA, in an environment with torch for the CPU
                continue
            waiting.append((found[key[0]], key[1]))
    return found
