"""Make the goldens of our own: inputs drawn by seeds, outputs in plain numpy from the methods' equations.

    python tests/data/make.py [NAME ...] [--output FOLDER]

The recipes import nothing of regaze and know no model but their own, so that a fault of regaze cannot be in
both. The layout is that of the goldens in ../shared, which are outputs of code that others wrote: the same
tests run on both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes import (
    amber,
    base,
    carve,
    dola,
    evit,
    gift,
    logits,
    mma,
    mme,
    moa,
    pai,
    paint,
    pope,
    relevance,
    retrieval,
    ruler,
    var,
    vcd,
    vit,
)

METHODS = (carve, dola, evit, gift, logits, mma, moa, paint, pai, relevance, retrieval, var, vcd, vit)
BENCHMARKS = (amber, mme, pope, ruler)


def main() -> None:
    """Make all, or those of the recipes named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="recipes; all of the methods' by default")
    parser.add_argument("--output", type=Path, default=base.FOLDER)
    given = parser.parse_args()
    base.FOLDER = given.output
    for module in METHODS:
        if not given.names or module.__name__.split(".")[1] in given.names:
            for golden in module.goldens():
                golden.save()
    for scripts in BENCHMARKS:
        scripts.write(given.output / "benchmarks" / scripts.__name__.split(".")[1])
    print(f"{base.total():,} bytes")


if __name__ == "__main__":
    main()
