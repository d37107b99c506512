"""Where the repository's own files lie, and material that is not part of it."""

from __future__ import annotations

import os
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parents[1]
DOCS = ROOT / "docs"
#: Goldens and files of other projects, which may not be in the repository.
SHARED = Path(os.environ.get("REGAZE_SHARED", ROOT.parent / "shared"))
#: Goldens of our own making, in the layout of those; `tests/data/make.py` made them.
OWN_GOLDENS = ROOT / "tests/data/goldens"
