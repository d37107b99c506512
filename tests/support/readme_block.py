"""README's Python block, which a user can copy; `python readme_block.py README.md` prints it."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def python_block(readme: Path) -> str:
    """The only Python block of a Markdown file."""
    (block,) = re.findall(
        r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return str(block)


if __name__ == "__main__":
    sys.stdout.write(python_block(Path(sys.argv[1])))
